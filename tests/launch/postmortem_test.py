"""Diagnosis of ended processes: a probable lack of memory, and a corrected status."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from engine.cluster import verdict
from engine.launch import postmortem
from engine.run import status


def test_unexplained_sigkill_is_attributed_to_lack_of_memory():
    explain = postmortem.explain_exit
    assert explain(137, "", out_of_memory=True).startswith("killed by SIGKILL: the kernel reports that memory ran out")
    assert explain(137, "", out_of_memory=False).startswith("killed by SIGKILL; if nobody sent the signal, memory ran")
    assert explain(137, "text of its verdict", out_of_memory=True) == "killed by SIGKILL"


def test_signals_of_faults_are_named_with_their_usual_cause():
    for number in (signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV):
        text = postmortem.explain_exit(128 + number, "", out_of_memory=False)
        assert text.startswith(f"killed by {number.name}: usually "), text
        assert postmortem.explain_exit(128 + number, "its verdict", out_of_memory=True) == f"killed by {number.name}"
    assert postmortem.explain_exit(128 + signal.SIGUSR1, "", out_of_memory=False) == "killed by SIGUSR1"
    assert postmortem.explain_exit(200, "", out_of_memory=False) == "exit code 200, which is not the engine's"


def test_process_that_ended_without_a_word_is_told_and_its_status_corrected(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(verdict.VARIABLE, raising=False)
    monkeypatch.setattr(verdict, "_memory", None)
    assert postmortem.report_unexplained(5, 0, out_of_memory=False) == 1  # before the run has named its status file
    verdict.share()
    path = tmp_path / "status.json"
    verdict.record_status_path(path)
    assert postmortem.report_unexplained(5, 137, out_of_memory=True) == 137  # before the file exists
    status.write(path, status.Status(state="training", pid=5))
    assert postmortem.report_unexplained(6, 137, out_of_memory=False) == 137  # that of another process
    assert status.read(path).state == "training"
    assert postmortem.report_unexplained(5, 0, out_of_memory=False) == 1
    found, last = status.read(path), capsys.readouterr().err.splitlines()[-1]
    assert (found.state, found.exit_code, found.reason) == ("failed", 1, last)
    assert verdict.is_intended(0) is False
    verdict.intend(0)
    assert verdict.is_intended(0) and not verdict.is_intended(1)


@pytest.mark.parametrize(
    ("state", "code", "pid", "corrected"),
    [
        ("training", None, 5, True),
        ("training", None, 6, False),
        ("preempted", 42, 5, False),
        ("failed", 42, 5, True),  # states only that a peer was lost
        ("failed", 1, 5, False),
    ],
)
def test_correct_status_overwrites_only_less_informed_statuses_of_the_job(
    tmp_path, monkeypatch, state, code, pid, corrected
):
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    path = tmp_path / "status.json"
    postmortem.correct_status(tmp_path, [5], 137, "killed.")  # before the run has named its status file
    verdict.record_status_path(path)
    postmortem.correct_status(tmp_path, [5], 137, "killed.")  # before the file exists
    status.write(path, status.Status(state=state, step=7, pid=pid, exit_code=code))
    postmortem.correct_status(tmp_path, [5], 137, "killed.")
    found = status.read(path)
    assert (found.step, found.host) == (7, os.uname().nodename)
    assert (found.state, found.reason, found.exit_code) == (
        ("failed", "killed.", 137) if corrected else (state, "", code)
    )


def test_end_is_told_below_the_bar_and_with_the_cursor_on_a_terminal():
    terminal, inside = pty.openpty()
    program = "from engine.launch import postmortem; postmortem.report_unexplained(5, 139, False)"
    done = subprocess.run([sys.executable, "-c", program], stderr=inside, timeout=60)
    found = os.read(terminal, 1000)
    os.close(terminal)
    os.close(inside)
    assert done.returncode == 0 and found.startswith(b"\x1b[?25h\r\nthe process was killed by SIGSEGV: usually")
