"""Two hosts that share only a bucket: each mounts it, or uses its address as the run directory.

The bucket belongs to moto's S3 server; s3fs mounts it. Each host has a separate mount namespace. When a host is lost,
so are its mount and all writes that were not uploaded yet.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from engine.run import status
from tests import runs
from tests.faults import harness
from tests.s3_server import s3_server

PROGRAMS = ("s3fs", "mount", "umount")
# Few steps, since a save takes seconds of CPU time; long ones, so that a fault happens before the last one.
PAUSE, SETTINGS = 0.2, {"mesh__fsdp": 2, "log__examples": False, "train__total": "20 steps"}
POLL_S = 0.5  # each look into the bucket is some requests
WITHOUT_CACHE = "disable_noobj_cache,stat_cache_expire=1"

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


@pytest.fixture(autouse=True)
def mounts_folder(monkeypatch):
    """The folder of the mounts of this test's processes."""
    with tempfile.TemporaryDirectory(prefix="convoy-", dir="/tmp") as folder:  # short, for the paths of sockets
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server with a bucket `runs`, in which each test has a folder of its own."""
    with s3_server("runs") as address:
        yield address


@pytest.fixture
def mount(server, tmp_path):
    """The arguments with which s3fs mounts the bucket at `tmp_path/bucket`."""
    (tmp_path / "keys").write_text("any:thing\n")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "bucket").mkdir()
    options = f"url={server},use_path_request_style,passwd_file={tmp_path / 'keys'},{WITHOUT_CACHE}"
    return ["runs", str(tmp_path / "bucket"), "-o", options]


@pytest.fixture
def bucket(mount):
    """The bucket, mounted at the same path in the namespace of the test, independently of the hosts."""
    subprocess.run(["s3fs", *mount], check=True, timeout=180)
    yield Path(mount[1])
    subprocess.run(["umount", "--lazy", mount[1]], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("unbroken")
    where = harness.config(folder / "config", pause=PAUSE, **SETTINGS)
    with harness.Job("train", where, f"--workdir={folder / 'run'}", processes=2) as job:
        assert job.end() == 0, job.output
    return folder / "run"


def assert_same_outcome(run, unbroken):
    assert harness.losses(run) == harness.losses(unbroken)
    assert harness.state_hashes(run) == harness.state_hashes(unbroken)


def test_two_hosts_resume_from_a_shared_bucket_after_both_are_killed(mount, bucket, unbroken, tmp_path):
    where = harness.config(tmp_path / "config", pause=PAUSE, **SETTINGS)
    train = [["train", where, f"--workdir={bucket / 'run'}"]] * 2
    host = harness.own_mounts(f"umount --lazy {bucket}", f"env -u CONVOY_PROCESS_ID s3fs {' '.join(mount)}")

    with harness.start_processes(train, [{}, {}], host) as jobs:
        jobs[0].until(lambda: len(harness.saved(bucket / "run")) >= 2, poll_s=POLL_S)
        for job in jobs:
            for pid in reversed(job.pids()):  # the mount program first, so that writes that were not uploaded are lost
                harness.kill(pid)
    left = harness.losses(bucket / "run")

    with harness.start_processes(train, [{}, {}], host) as jobs:
        assert [job.end() for job in jobs] == [0, 0], jobs[0].output + jobs[1].output
    # A bucket cannot rename a folder atomically: the newest step may be incomplete, and is then set aside.
    resumed = re.search(r"resuming from step (\d+)\n", (bucket / "run" / "log.txt").read_text())
    assert resumed and left.keys() >= set(range(1, int(resumed[1]) + 1))

    assert_same_outcome(bucket / "run", unbroken)
    checked = runs.convoy("checkpoints", "verify", str(bucket / "run"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def keys(server):
    return {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing"}


def own_mounts():
    """The mounts that processes of this test have created for an address."""
    prefix = f" {os.environ['TMPDIR']}/convoy-runs-"
    return [line for line in Path("/proc/mounts").read_text().splitlines() if prefix in line]


def test_bucket_address_works_as_run_directory_and_mounts_end_with_their_process(server, bucket, unbroken, tmp_path):
    train = [["train", harness.config(tmp_path / "config", pause=PAUSE, **SETTINGS), "--workdir=s3://runs/address"]] * 2
    run = bucket / "address"
    with harness.start_processes(train, [keys(server)] * 2) as jobs:
        jobs[0].until(lambda: harness.saved(run), poll_s=POLL_S)
        assert len(own_mounts()) == 2
        for job in jobs:
            harness.kill(job.process.pid)
        end = time.monotonic() + 60
        while jobs[0].pids() or jobs[1].pids():  # including the programs that serve the mounts
            assert time.monotonic() < end
            time.sleep(0.1)
    assert harness.status(run)["state"] in status.RUNNING
    assert "saving checkpoint of step 5\n" in (run / "log.txt").read_text()

    with harness.start_processes(train, [keys(server)] * 2) as jobs:
        jobs[0].until(lambda: 2 in harness.attempts(run).values(), poll_s=POLL_S)
        for job in jobs:
            for pid in job.pids():  # as when a control group is stopped: also the programs that serve the mounts
                os.kill(pid, signal.SIGTERM)
        assert [job.end() for job in jobs] == [42, 42], jobs[0].output + jobs[1].output
        reason = harness.status(run)["reason"]
        found = re.fullmatch(r"asked to stop; the state of step (\d+)/20 is saved in s3://runs/address\.", reason)
        assert found and int(found[1]) == max(harness.saved(run))
    assert own_mounts() == []
    assert harness.losses(run) == {
        step: loss for step, loss in harness.losses(unbroken).items() if step <= int(found[1])
    }
    checked = runs.convoy("checkpoints", "verify", "s3://runs/address", **keys(server))
    assert checked.returncode == 0, checked.stdout + checked.stderr


DATA = """
import threading
import numpy as np
from engine import ArraySource, local_path
from engine.storage.mounts import shown
from engine.readers.array_record import ArrayRecordSource, write_array_record
first = threading.Thread(target=local_path, args=["s3://runs"])  # the mount must outlive this thread
first.start()
first.join()
write_array_record(ArraySource({"x": np.arange(5)}), "s3://runs/data/part.arrayrecord")
source = ArrayRecordSource("s3://runs/data/*.arrayrecord")
print([int(source[index]["x"]) for index in range(len(source))], *map(shown, source.paths))
"""


def test_dataset_can_be_read_from_a_bucket_address(server, bucket):
    done = subprocess.run(
        [sys.executable, "-c", DATA], capture_output=True, text=True, env=runs.environment(**keys(server)), timeout=180
    )
    assert done.stdout == "[0, 1, 2, 3, 4] s3://runs/data/part.arrayrecord\n", done.stderr
    assert (bucket / "data" / "part.arrayrecord").is_file()


def test_missing_bucket_is_reported(server, tmp_path):
    where = harness.config(tmp_path / "config")
    done = runs.convoy("train", where, "--workdir=s3://other/run", **keys(server))
    assert done.returncode == 1
    assert done.stderr.startswith("RunError: s3://other: s3fs cannot mount it (")
    assert "bucket does not exist" in done.stderr and "Traceback" not in done.stderr


SILENT = """
import os, socket
from engine.storage import mounts
mounts.MOUNT_S = 2.0
server = socket.create_server(("127.0.0.1", 0))
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
try:
    mounts.local_path("s3://runs/a")
except mounts.RunError as error:
    print(error)
"""


def test_unresponsive_bucket_server_is_reported_within_the_timeout(server):
    done = subprocess.run(
        [sys.executable, "-c", SILENT],
        capture_output=True,
        text=True,
        env=runs.environment(**keys(server)),
        timeout=180,
    )
    assert done.stdout.startswith("s3://runs: s3fs cannot mount it") and "answers within 2 s" in done.stdout, (
        done.stderr
    )
    assert own_mounts() == []


HELD = """
import time
from engine import local_path
print(local_path("s3://runs"), flush=True)
time.sleep(60)
"""


def test_next_process_unmounts_what_a_killed_process_left_mounted(server):
    command, env = [sys.executable, "-c"], runs.environment(**keys(server))
    with subprocess.Popen([*command, HELD], stdout=subprocess.PIPE, text=True, env=env) as held:
        assert held.stdout is not None
        folder = held.stdout.readline().strip()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if folder.encode() in path.read_bytes():
                    harness.kill(int(path.parent.name))
        held.kill()
    assert len(own_mounts()) == 1
    subprocess.run([*command, "import engine; engine.local_path('s3://runs')"], check=True, env=env, timeout=180)
    assert own_mounts() == []
    assert not Path(folder).exists()
