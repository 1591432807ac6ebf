"""A step that some process reads is known to be read, until that process is done or dead."""

import subprocess
import sys
import textwrap

import pytest

from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.read_lock import delete_lock, read_lock

READER = """
    import sys
    from pathlib import Path
    from engine.checkpoint.read_lock import read_lock
    with read_lock(Path(sys.argv[1])):
        print("reading", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def step(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / MANIFEST).write_text("{}")
    return tmp_path / "3"


@pytest.mark.multiprocess
@pytest.mark.parametrize("killed", [False, True])
def test_another_process_that_reads_is_seen_until_it_ends(step, killed):
    words = [sys.executable, "-c", textwrap.dedent(READER), str(step)]
    reader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
    with delete_lock(step) as free:
        assert not free
    if killed:
        reader.kill()
    reader.communicate("")
    with delete_lock(step) as free:
        assert free


def test_several_may_read_and_nobody_is_in_the_way_of_himself(step):
    with read_lock(step), read_lock(step), delete_lock(step) as free:
        assert not free
    with delete_lock(step) as free:
        assert free


def test_a_step_that_is_gone_is_not_read(step):
    step.rename(step.with_name("3.deleted"))
    with delete_lock(step) as free:
        assert free
    with pytest.raises(FileNotFoundError), read_lock(step):
        pass
