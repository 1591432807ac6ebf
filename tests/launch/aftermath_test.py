"""What is told of processes that are gone: a likely lack of memory, and a status that no longer says "training"."""

import os

import pytest

from engine.cluster import ending
from engine.launch import aftermath
from engine.run import status


def test_a_kill_that_nothing_explains_has_memory_as_its_likely_cause():
    assert aftermath.why(137, "", for_memory=True).startswith("killed by SIGKILL: memory ran out, the kernel says")
    assert aftermath.why(137, "", for_memory=False).startswith("killed by SIGKILL; if nobody sent it, memory ran out")
    assert aftermath.why(137, "its own words", for_memory=True) == "killed by SIGKILL"
    assert aftermath.why(139, "", for_memory=True) == "killed by SIGSEGV"


def test_the_kernels_count_is_read_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(aftermath, "_EVENTS", tmp_path / "events")
    assert aftermath.killed_for_memory() == 0
    (tmp_path / "events").write_text("low 0\noom 4\noom_kill 3\n")
    assert aftermath.killed_for_memory() == 3
    (tmp_path / "events").write_text("nothing that is known")
    assert aftermath.killed_for_memory() == 0


@pytest.mark.parametrize(
    ("state", "pid", "after"), [("training", 5, "failed"), ("training", 6, "training"), ("preempted", 5, "preempted")]
)
def test_only_a_status_of_the_jobs_own_that_tells_no_end_is_corrected(tmp_path, monkeypatch, state, pid, after):
    monkeypatch.setenv(ending.VARIABLE, str(tmp_path / "0.json"))
    path = tmp_path / "status.json"
    aftermath.correct_status(tmp_path, [5], 137, "killed.")  # before the run has told where it lies
    ending.note_status(path)
    aftermath.correct_status(tmp_path, [5], 137, "killed.")  # before it is there
    status.write(path, status.Status(state=state, step=7, pid=pid))
    aftermath.correct_status(tmp_path, [5], 137, "killed.")
    found = status.read(path)
    assert (found.state, found.step, found.host) == (after, 7, os.uname().nodename)
    assert (found.reason, found.exit_code) == (("killed.", 137) if after == "failed" else ("", None))
