"""A process is killed when its parent dies, and a parent that waits for it passes on signals and its exit code."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
        end = time.monotonic() + 180
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


CHILD = """
import os, signal, sys, time
from engine.cluster import parent

def on_end(pid, code):
    print("ended with", code, flush=True)
    return code

assert parent.continue_in_child(on_end, lambda number: None)
assert parent.command_pid() == os.getppid()
def got(number, frame):
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())  # a second signal may interrupt it, and no `print`

ends = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGCONT):
    signal.signal(number, got)
signal.signal(signal.SIGUSR1, lambda number, frame: (os.setpgrp(), got(number, frame)))
signal.signal(signal.SIGUSR2, lambda number, frame: ends.append(True))
print(os.getppid(), os.getpid(), flush=True)
while not ends:
    time.sleep(0.01)
sys.exit(7)
"""


@contextlib.contextmanager
def start_child() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts CHILD; yields its first process, which waits, and the pid of the other."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            waiting, child = map(int, process.stdout.readline().split())
            assert waiting == process.pid
            yield process, child
        finally:
            process.kill()


def until(condition) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent that waits")
def test_waiting_parent_passes_on_each_signal_once_and_exits_with_the_code_of_its_child():
    with start_child() as (process, child):
        assert process.stdout is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT):
            process.send_signal(number)
            assert select.select([process.stdout], [], [], 120)[0], f"no {number.name}"
            assert process.stdout.readline() == f"got {number.name}\n"
        process.send_signal(signal.SIGUSR2)
        assert (process.stdout.read(), process.wait(180)) == ("ended with 7\n", 7)
    assert not alive(child)


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent that waits")
def test_killed_child_is_told_and_killed_parent_takes_its_child_along():
    with start_child() as (process, child):
        os.kill(child, signal.SIGKILL)
        assert process.wait(180) == 128 + signal.SIGKILL
        assert process.stdout is not None and process.stdout.read() == f"ended with {128 + signal.SIGKILL}\n"
    with start_child() as (process, child):
        process.kill()
        until(lambda: not alive(child))


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent that waits")
def test_limit_that_allows_no_parent_is_a_warning_and_the_program_runs_without():
    program = """
import os, resource
from engine.cluster import forwarding, output, parent
output.guard()
resource.setrlimit(resource.RLIMIT_NOFILE, (7, 7))
print(parent.continue_in_child(lambda pid, code: code, lambda number: None), parent.command_pid() == os.getpid())
print(os.dup(0) == 3)  # nothing is left open
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout) == (0, "False True\nTrue\n")
    warning = "warning: no process can wait for this one (Too many open files): if its code ends it, nothing tells how."
    assert done.stderr == f"{warning}\n"


SHELL = """
import os, signal, subprocess, sys
os.login_tty(int(sys.argv[1]))
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen([sys.executable, "-c", sys.argv[2]], process_group=0)
os.tcsetpgrp(0, job.pid)
while os.WIFSTOPPED(status := os.waitpid(job.pid, os.WUNTRACED)[1]):
    print("stopped", flush=True)
    os.killpg(job.pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent that waits")
def test_keys_of_a_terminal_reach_the_child_once_and_stop_both_processes():
    terminal, inside = pty.openpty()
    words = [sys.executable, "-c", SHELL, str(inside), CHILD]
    with os.fdopen(terminal, "r+b", buffering=0) as output, subprocess.Popen(words, pass_fds=(inside,)) as process:
        os.close(inside)
        seen, waiting = "", 0

        def read_until(text: str) -> None:
            nonlocal seen
            while text not in seen:
                assert select.select([output], [], [], 120)[0], f"no {text} after {seen}"
                seen += output.read(1000).decode()

        try:
            read_until("\n")
            waiting = int(seen.split()[0])
            output.write(b"\x03")  # Ctrl-C
            read_until("SIGINT")
            output.write(b"\x1a")  # Ctrl-Z; then the shell continues the job
            read_until("stopped")
            read_until("SIGCONT")
            os.kill(waiting, signal.SIGTERM)
            read_until("SIGTERM")
            assert seen.count("SIGINT") == 1
            seen = ""
            os.kill(waiting, signal.SIGUSR1)  # moves the child to a group of its own
            read_until("SIGUSR1")
            output.write(b"\x03")
            read_until("SIGINT")
            os.kill(waiting, signal.SIGUSR2)
            assert process.wait(180) == 7
        finally:
            with contextlib.suppress(ProcessLookupError):
                if waiting:
                    os.kill(waiting, signal.SIGKILL)
            process.kill()
