"""The slow disk delays real calls of a process, or holds them until the rules change."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.disk import Disk, has_compiler

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not has_compiler(), reason="this machine has no C compiler (cc)"),
]

WRITE = "import sys; open(sys.argv[1], 'w').write('there')"
READ = "import sys; print(open(sys.argv[1]).read())"


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "slow").mkdir()
    return Disk(tmp_path, tmp_path / "slow")


def start(disk, code, path, process="0"):
    environment = os.environ | disk.environment | {"CONVOY_PROCESS_ID": process}
    return subprocess.Popen([sys.executable, "-S", "-c", code, str(path)], env=environment, stdout=subprocess.PIPE)


def test_hanging_call_continues_after_the_rule_is_removed(disk, tmp_path):
    disk.set_rules("* write hang")
    with start(disk, WRITE, tmp_path / "quick") as elsewhere, start(disk, WRITE, tmp_path / "slow" / "file") as process:
        assert elsewhere.wait(60) == 0
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert not (tmp_path / "slow" / "file").exists()
        disk.set_rules()
        assert process.wait(60) == 0
    assert (tmp_path / "slow" / "file").read_text() == "there"


def test_rule_delays_only_its_process_and_kind(disk, tmp_path):
    disk.set_rules("1 read 0.5")
    file = tmp_path / "slow" / "file"
    with start(disk, WRITE, file, process="1") as process:
        assert process.wait(60) == 0
    took = []
    for number in ("0", "1"):
        began = time.monotonic()
        with start(disk, READ, file, number) as process:
            assert process.communicate(timeout=60)[0] == b"there\n"
        took.append(time.monotonic() - began)
    assert took[1] >= 1  # open and read, each 0.5 s
