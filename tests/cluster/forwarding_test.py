"""Output of a process, forwarded by its parent."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import time

import pytest

from engine.cluster import output, timeouts
from engine.cluster.forwarding import Forwarder

WRITES = r"""
import os
os.write(2, "\r 10 % \r 20 %\n".encode())
os.write(1, "ü".encode()[:1])
os.write(1, "ü".encode()[1:] + b"\xff a line without an end")
"""


def forwarded(prefix: str | None, program: str = WRITES) -> None:
    """Runs a program and copies what it writes to the streams of this process."""
    forwarder = Forwarder(prefix)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=forwarder.stdout, stderr=forwarder.stderr)
    forwarder.start()
    assert process.wait(60) == 0
    assert forwarder.join(lambda: False)


def test_output_of_a_single_process_is_copied_unchanged(capfdbinary):
    forwarded(None)
    found = capfdbinary.readouterr()
    assert found.err == b"\r 10 % \r 20 %\n"
    assert found.out == "ü".encode() + b"\xff a line without an end"


def test_lines_of_several_processes_get_their_prefix(capsys):
    forwarded("[3] ")
    found = capsys.readouterr()
    assert found.err.splitlines() == ["[3] ", "[3]  10 %", "[3]  20 %"]
    assert found.out == "[3] ü\ufffd a line without an end\n"


LEFT = """
import os, sys
os.write(1, b"a line without an end")
if os.fork():
    os._exit(0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("heir", [["cat"], ["yes"]])  # the first ends with its input, the second with its output
@pytest.mark.parametrize("prefix", [None, "[3] "])
def test_processes_that_outlive_theirs_are_not_waited_for(capsys, prefix, heir):
    forwarder = Forwarder(prefix)
    words = [sys.executable, "-c", LEFT, *heir]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=forwarder.stdout, stderr=forwarder.stderr)
    assert process.stdin is not None
    with process.stdin:
        forwarder.start()
        assert process.wait(60) == 0
        begin = time.monotonic()
        assert forwarder.join(lambda: time.monotonic() > begin + 20)
        assert time.monotonic() - begin < timeouts.UNREAD_S
    assert capsys.readouterr().out.startswith(f"{prefix or ''}a line without an end")


def test_reading_thread_that_fails_closes_the_output_of_the_process(monkeypatch, caplog, capfd):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(output, "write", fail)
    forwarder = Forwarder()
    process = subprocess.Popen(["yes"], stdout=forwarder.stdout, stderr=forwarder.stderr)
    forwarder.start()
    assert process.wait(60) in (1, -signal.SIGPIPE)  # not stuck in a full pipe
    assert forwarder.join(lambda: False)
    assert "the thread output has failed: MemoryError" in caplog.text
    assert "What the process prints is lost from here on." in caplog.text


UNREAD = """
import os, subprocess, sys, time
from engine.cluster import output
from engine.cluster.forwarding import Forwarder
output.guard()
if sys.argv[1] == "drop":
    output.drop_unread_results()
words = [sys.executable, "-c", f"print('x' * {sys.argv[2]})"]
forwarder = Forwarder()
process = subprocess.Popen(words, stdout=forwarder.stdout, stderr=forwarder.stderr)
forwarder.start()
assert process.wait(60) == 0
begin = time.monotonic()
complete = forwarder.join(lambda: time.monotonic() > begin + 1)
os.write(2, str(complete).encode())
os._exit(0)
"""


def test_process_waits_for_the_reader_of_its_result_only():
    def is_complete(how: str, size: int) -> str:
        words = [sys.executable, "-c", textwrap.dedent(UNREAD), how, str(size)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        with process.stdout, process.stderr:
            assert process.wait(60) == 0
            return process.stderr.read()

    assert is_complete("drop", 3_000_000) == "True"
    assert is_complete("keep", 100_000) == "False"  # more than one pipe holds, less than two: the process ends


PARENT = """
import subprocess, sys
from engine.cluster import output
from engine.cluster.forwarding import Forwarder
output.guard()
output.drop_unread_results()
program = '''
import os, sys
print(sys.stdout.isatty(), sys.stderr.isatty(), *os.get_terminal_size(1), flush=True)
for n in range(200):
    print(n, file=(sys.stdout, sys.stderr)[n % 2], flush=True)
'''
forwarder = Forwarder()
process = subprocess.Popen([sys.executable, "-c", program], stdout=forwarder.stdout, stderr=forwarder.stderr)
forwarder.start()
assert process.wait(60) == 0 and forwarder.join(lambda: False)
"""


def test_process_gets_a_terminal_of_the_same_size_and_keeps_the_order_of_its_lines():
    terminal, inside = pty.openpty()
    with open(terminal, "rb", buffering=0) as screen:
        termios.tcsetwinsize(inside, (30, 99))
        process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=inside, stderr=inside)
        os.close(inside)
        text = b""
        with contextlib.suppress(OSError):  # nobody has the terminal open any more
            while data := screen.read(1000):
                text += data
        assert process.wait(60) == 0
    assert text.decode().split("\r\n") == ["True True 99 30", *map(str, range(200)), ""]
