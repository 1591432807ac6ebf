"""Diagnosis of ended processes: a probable lack of memory, and a corrected status."""

import os

import pytest

from engine.cluster import verdict
from engine.launch import postmortem
from engine.run import status


def test_unexplained_sigkill_is_attributed_to_lack_of_memory():
    explain = postmortem.explain_exit
    assert explain(137, "", out_of_memory=True).startswith("killed by SIGKILL: the kernel reports that memory ran out")
    assert explain(137, "", out_of_memory=False).startswith("killed by SIGKILL; if nobody sent the signal, memory ran")
    assert explain(137, "text of its verdict", out_of_memory=True) == "killed by SIGKILL"
    assert explain(139, "", out_of_memory=True) == "killed by SIGSEGV"


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
