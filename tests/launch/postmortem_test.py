"""What is told of processes that are gone: a likely lack of memory, and a status that no longer says "training"."""

import os

import pytest

from engine.cluster import verdict
from engine.launch import postmortem
from engine.run import status


def test_unexplained_sigkill_is_attributed_to_lack_of_memory():
    assert postmortem.why(137, "", for_memory=True).startswith("killed by SIGKILL: memory ran out, the kernel says")
    assert postmortem.why(137, "", for_memory=False).startswith("killed by SIGKILL; if nobody sent it, memory ran out")
    assert postmortem.why(137, "its own words", for_memory=True) == "killed by SIGKILL"
    assert postmortem.why(139, "", for_memory=True) == "killed by SIGSEGV"


@pytest.mark.parametrize(
    ("mine", "file", "text"),
    [
        ("0::/\n", "memory.events", "low 0\noom 4\noom_kill 3\n"),
        ("0::/job/a\n", "job/a/memory.events", "oom 4\noom_kill 3\n"),
        ("5:cpu,memory:/job\n0::/\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_oom_kills_are_read_from_the_control_group(tmp_path, monkeypatch, mine, file, text):
    monkeypatch.setattr(postmortem, "_MINE", tmp_path / "cgroup")
    monkeypatch.setattr(postmortem, "_GROUPS", tmp_path)
    assert postmortem.killed_for_memory() == 0
    (tmp_path / "cgroup").write_text(mine)
    assert postmortem.killed_for_memory() == 0
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert postmortem.killed_for_memory() == 3
    (tmp_path / file).write_text("nothing that is known")
    assert postmortem.killed_for_memory() == 0


@pytest.mark.parametrize(
    ("state", "code", "pid", "corrected"),
    [
        ("training", None, 5, True),
        ("training", None, 6, False),
        ("preempted", 42, 5, False),
        ("failed", 42, 5, True),  # a peer was lost: the job knows how
        ("failed", 1, 5, False),
    ],
)
def test_correct_status_overwrites_only_less_informed_statuses_of_the_job(
    tmp_path, monkeypatch, state, code, pid, corrected
):
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    path = tmp_path / "status.json"
    postmortem.correct_status(tmp_path, [5], 137, "killed.")  # before the run has told where it lies
    verdict.record_status_path(path)
    postmortem.correct_status(tmp_path, [5], 137, "killed.")  # before it is there
    status.write(path, status.Status(state=state, step=7, pid=pid, exit_code=code))
    postmortem.correct_status(tmp_path, [5], 137, "killed.")
    found = status.read(path)
    assert (found.step, found.host) == (7, os.uname().nodename)
    assert (found.state, found.reason, found.exit_code) == (
        ("failed", "killed.", 137) if corrected else (state, "", code)
    )
