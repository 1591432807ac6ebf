"""A process is killed when its parent dies, even if it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, subprocess, sys, time
from engine.cluster.parent import kill_with
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=kill_with(os.getpid()))
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
def test_process_is_killed_with_its_parent(stopped):
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


THREAD = """
import os, subprocess, threading, time
from engine.cluster import parent
kill_with_parent = parent.kill_with(os.getpid())
children = []
def start():
    pipe = subprocess.PIPE
    children.append(subprocess.Popen(["cat"], stdin=pipe, stdout=pipe, preexec_fn=kill_with_parent))
thread = threading.Thread(target=start)
thread.start()
while len(os.listdir("/proc/self/task")) > 1:  # the kernel's thread ends after Python's
    time.sleep(0.001)
print(children[0].communicate(b"still here")[0].decode(), children[0].returncode)
"""


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_process_is_killed_with_its_starting_thread():
    done = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, timeout=180)
    assert (done.stdout, done.stderr) == (" -9\n", "")
