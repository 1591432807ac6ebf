"""Output of a process, forwarded by its parent."""

import os
import pty
import subprocess
import sys
import textwrap

from engine.launch.forwarding import Forwarder, terminal_variables

WRITES = r"""
import os
os.write(2, "\r 10 % \r 20 %\n".encode())
os.write(1, "ü".encode()[:1])
os.write(1, "ü".encode()[1:] + b"\xff a line without an end")
"""


def forwarded(prefix: str | None) -> None:
    """Runs a program and copies what it writes to the streams of this process."""
    process = subprocess.Popen([sys.executable, "-c", WRITES], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    forwarder = Forwarder(process, prefix)
    assert process.wait(60) == 0
    assert forwarder.join(lambda: False)


def test_output_of_a_single_process_is_copied_unchanged(capfdbinary):
    forwarded(None)
    found = capfdbinary.readouterr()
    assert found.err == b"\r 10 % \r 20 %\n"
    assert found.out.decode().startswith("ü") and found.out.endswith(b" a line without an end")


def test_lines_of_several_processes_get_their_prefix(capsys):
    forwarded("[3] ")
    found = capsys.readouterr()
    assert found.err.splitlines() == ["[3] ", "[3]  10 %", "[3]  20 %"]
    assert found.out == "[3] ü\ufffd a line without an end\n"


UNREAD = """
import os, subprocess, sys, time
from engine.cluster import output
from engine.launch.forwarding import Forwarder
output.guard()
if sys.argv[1] == "drop":
    output.drop_unread_results()
words = [sys.executable, "-c", "print('x' * 3_000_000)"]
process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
forwarder = Forwarder(process, None)
if sys.argv[1] == "drop":
    assert process.wait(60) == 0
begin = time.monotonic()
complete = forwarder.join(lambda: time.monotonic() > begin + 1)
os.write(2, f"{complete} {process.poll()}".encode())
os._exit(0)
"""


def test_process_waits_for_the_reader_of_its_result_only():
    def found(how: str) -> str:
        program = textwrap.dedent(UNREAD)
        process = subprocess.Popen(
            [sys.executable, "-c", program, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stderr is not None
        with process.stdout, process.stderr:
            assert process.wait(60) == 0
            return process.stderr.read()

    assert found("drop") == "True 0"
    assert found("keep") == "False None"


def test_terminal_of_the_parent_is_named_with_its_size(monkeypatch):
    assert terminal_variables() == {}
    terminal, inside = pty.openpty()
    with open(terminal, "rb"), open(inside, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "77")
        monkeypatch.delenv("LINES", raising=False)
        assert terminal_variables() == {"CONVOY_TERMINALS": "2", "COLUMNS": "77"}
        monkeypatch.delenv("COLUMNS")
        os.system(f"stty -F {os.ttyname(inside)} rows 30 cols 99")
        assert terminal_variables() == {"CONVOY_TERMINALS": "2", "COLUMNS": "99", "LINES": "30"}
