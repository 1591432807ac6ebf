import math
from pathlib import Path

import pytest

from engine.base import json_text
from engine.launch.supervisor import Exit, Restart, Supervisor
from engine.run import status
from engine.sweeps.trials import (
    FAILED,
    OUT_OF_MEMORY,
    SeedRun,
    failure_of,
    is_done,
    kind_of,
    last_line,
    mean_of,
    new_results,
    problem_of,
    read_end,
)
from engine.sweeps.workers import Job

METRIC = "heldout/loss"


def seed_run(path: Path) -> SeedRun:
    return SeedRun(0, 0, Job("trial-0000", [], path), Supervisor(None))


def write_status(path: Path, state: str, **more) -> None:
    status.write(path / "status.json", status.Status(state=state, **more))


def write_results(path: Path, results: dict) -> None:
    (path / "checkpoints").mkdir(exist_ok=True)
    (path / "checkpoints" / "results.json").write_text(json_text.dumps(results))


def test_new_evaluations_are_returned_once_in_order(tmp_path):
    run = seed_run(tmp_path)
    assert new_results(run, METRIC) == []
    values = {"20": {METRIC: 0.2}, "0": {METRIC: 9.0}, "10": {METRIC: 0.3}, "15": {"other/loss": 1.0}}
    write_results(tmp_path, values)
    assert new_results(run, METRIC) == [(10, 0.3), (20, 0.2)]
    run.reported = 10
    assert new_results(run, METRIC) == [(20, 0.2)]
    write_results(tmp_path, {"30": {METRIC: math.inf}})
    assert math.isnan(new_results(run, METRIC)[0][1])
    (tmp_path / "checkpoints" / "results.json").write_text("{")
    assert new_results(run, METRIC) == []


def test_end_of_a_run_is_read_from_its_directory(tmp_path):
    assert not is_done(tmp_path)
    write_status(tmp_path, "training", step=3, total_steps=10)
    assert not is_done(tmp_path)
    write_status(tmp_path, "done", step=5, total_steps=10, metrics={METRIC: 0.5})
    assert is_done(tmp_path)
    found = read_end(tmp_path, METRIC)
    assert (found.step, found.value, found.is_early) == (5, 0.5, True)
    assert read_end(tmp_path, "heldout/other").value is None
    write_status(tmp_path, "done", step=10, total_steps=10, metrics={METRIC: math.nan})
    found = read_end(tmp_path, METRIC)
    assert not found.is_early and found.value is not None and math.isnan(found.value)


def test_problem_is_the_sentence_of_the_run_or_its_last_line(tmp_path):
    run, log = seed_run(tmp_path), tmp_path / "trial-0000.log"
    assert problem_of(run, log, 7) == f"ended with exit code 7; its output is in {log}"
    log.write_text("step 1\nKilled\n\n")
    assert problem_of(run, log, 137) == "Killed"
    write_status(tmp_path, "failed", reason="ValueError: bad width (model.py:3).")
    assert problem_of(run, log, 1) == "ValueError: bad width (model.py:3)"
    log.write_text("out of memory: this machine has less than 5% left.\n")
    assert problem_of(run, log, 137) == "out of memory: this machine has less than 5% left"


def test_last_line_of_a_long_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 100_000 + b"\nthe end \xff\n\n")
    assert last_line(log) == "the end \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes", OUT_OF_MEMORY),
        ("the kernel killed a process for lack of memory", OUT_OF_MEMORY),
        ("ValueError: bad width", FAILED),
    ],
)
def test_lack_of_memory_is_told_apart(text, kind):
    assert kind_of(text) == kind


def decisions(run: SeedRun, ends: list[tuple[int, str]]) -> list[type]:
    return [type(run.supervisor.after(failure_of(run, problem, code))) for code, problem in ends]


def test_same_sentence_with_other_numbers_is_a_loop(tmp_path):
    same = [(42, f"step {step} could not be saved") for step in range(3)]
    assert decisions(seed_run(tmp_path), same) == [Restart, Restart, Exit]
    others = [(42, text) for text in ("a", "b", "c")]
    assert decisions(seed_run(tmp_path), others) == [Restart] * 3


def test_second_lack_of_memory_and_errors_of_the_user_end_a_run(tmp_path):
    assert decisions(seed_run(tmp_path), [(137, "out of memory")] * 2) == [Restart, Exit]
    assert decisions(seed_run(tmp_path), [(1, "ValueError")]) == [Exit]


def test_preempted_run_is_started_again_each_time(tmp_path):
    write_status(tmp_path, "preempted", reason="SIGTERM")
    assert decisions(seed_run(tmp_path), [(42, "SIGTERM")] * 6) == [Restart] * 6


def test_mean_has_an_interval_from_two_seeds_on():
    assert mean_of([0.5]) == (0.5, None)
    mean, interval = mean_of([0.4, 0.6])
    assert mean == pytest.approx(0.5)
    assert interval == pytest.approx([0.5 - 12.7062 * 0.1, 0.5 + 12.7062 * 0.1], rel=1e-4)
