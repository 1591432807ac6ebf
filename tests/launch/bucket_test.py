"""Two hosts without a shared disk: each mounts the same bucket, and that is all that they share.

The bucket is one of moto's S3 server, the mounts are s3fs's, each in a mount namespace of its own. A host that is lost
takes its mount with it, and all that it had not sent.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests import runs
from tests.faults import bench

PROGRAMS = ("s3fs", "unshare", "umount")
WITHOUT_CACHE = "disable_noobj_cache,stat_cache_expire=1"
HOST = """\
set -eu
mount --make-rprivate /
umount --lazy {place}
env -u CONVOY_PROCESS_ID s3fs {mount}
exec "$@"
"""

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(
        "CI" not in os.environ
        and (
            os.geteuid() != 0 or not Path("/dev/fuse").exists() or any(shutil.which(name) is None for name in PROGRAMS)
        ),
        reason="mounts of buckets need root, FUSE and s3fs",
    ),
]


@pytest.fixture
def mount(tmp_path):
    """The words by which s3fs mounts a bucket at `tmp_path/bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end, place = time.monotonic() + 60, f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{place}/runs", method="PUT")).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    (tmp_path / "keys").write_text("any:thing\n")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "bucket").mkdir()
    options = f"url={place},use_path_request_style,passwd_file={tmp_path / 'keys'},{WITHOUT_CACHE}"
    yield ["runs", str(tmp_path / "bucket"), "-o", options]
    server.kill()
    server.wait()


@pytest.fixture
def bucket(mount):
    """The bucket as a third party sees it, at the same place in the test's own namespace."""
    subprocess.run(["s3fs", *mount], check=True, timeout=60)
    yield Path(mount[1])
    subprocess.run(["umount", "--lazy", mount[1]], check=True)


def test_two_hosts_that_share_a_bucket_alone_lose_nothing_when_both_are_lost(mount, bucket, tmp_path):
    settings = dict(mesh__fsdp=2, log__examples=False)
    where = bench.config(tmp_path / "config", pause=0.1, **settings)
    train = [["train", where, f"--workdir={bucket / 'run'}"]] * 2
    host = ("unshare", "--mount", "sh", "-c", HOST.format(mount=" ".join(mount), place=bucket), "sh")

    with bench.ranks(train, [{}, {}], host) as jobs:
        jobs[0].until(lambda: len(bench.saved(bucket / "run")) >= 2)
        for job in jobs:
            for pid in reversed(job.pids()):  # the mount's program first: what the run had not sent is lost
                bench.kill(pid)
    left = bench.losses(bucket / "run")

    with bench.ranks(train, [{}, {}], host) as jobs:
        assert [job.end() for job in jobs] == [0, 0], jobs[0].output + jobs[1].output
    # A bucket has no rename of a folder in one piece: the newest step may be half there, and is then set aside.
    resumed = re.search(r"resuming from step (\d+)\n", (bucket / "run" / "log.txt").read_text())
    assert resumed and left.keys() >= set(range(1, int(resumed[1]) + 1))

    alone = bench.config(tmp_path / "alone", **settings)
    with bench.Job("train", alone, f"--workdir={tmp_path / 'unbroken'}", ranks=2) as job:
        assert job.end() == 0, job.output
    assert bench.losses(bucket / "run") == bench.losses(tmp_path / "unbroken")
    assert bench.state_hashes(bucket / "run") == bench.state_hashes(tmp_path / "unbroken")
    checked = runs.convoy("checkpoints", "verify", str(bucket / "run"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
