"""A process ends with its parent, stopped or not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, subprocess, sys, time
from engine.cluster.parent import end_with
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=end_with(os.getpid()))
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.multiprocess
@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_ends_with_a_parent_that_is_killed(stopped):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        if stopped:
            os.kill(child, signal.SIGSTOP)
        assert alive(child)
        process.kill()
        end = time.monotonic() + 60
        while alive(child):
            assert time.monotonic() < end
            time.sleep(0.01)
