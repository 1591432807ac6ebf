"""The disk of the fault bench and of slow_storage delays real calls, or holds them back until it is told otherwise."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.disk import Disk, can_be_made

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not can_be_made(), reason="this machine has no C compiler (cc)"),
]

WRITE = "import sys; open(sys.argv[1], 'w').write('there')"
READ = "import sys; print(open(sys.argv[1]).read())"


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "slow").mkdir()
    return Disk(tmp_path, tmp_path / "slow")


def start(disk, code, path, rank="0"):
    environment = os.environ | disk.environment | {"CONVOY_PROCESS_ID": rank}
    return subprocess.Popen([sys.executable, "-S", "-c", code, str(path)], env=environment, stdout=subprocess.PIPE)


def test_a_call_that_hangs_goes_on_when_it_may(disk, tmp_path):
    disk.does("* write hang")
    with start(disk, WRITE, tmp_path / "quick") as elsewhere, start(disk, WRITE, tmp_path / "slow" / "file") as process:
        assert elsewhere.wait(60) == 0
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert not (tmp_path / "slow" / "file").exists()
        disk.does()
        assert process.wait(60) == 0
    assert (tmp_path / "slow" / "file").read_text() == "there"


def test_only_the_named_rank_and_kind_is_slow(disk, tmp_path):
    disk.does("1 read 2")
    file = tmp_path / "slow" / "file"
    with start(disk, WRITE, file, rank="1") as process:
        assert process.wait(60) == 0
    took = []
    for rank in ("0", "1"):
        began = time.monotonic()
        with start(disk, READ, file, rank) as process:
            assert process.communicate(timeout=60)[0] == b"there\n"
        took.append(time.monotonic() - began)
    assert took[1] >= 4  # open and read
