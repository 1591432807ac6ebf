import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.sweeps.asking import Asking
from engine.sweeps.folder import SweepFolder
from engine.sweeps.objective import Trial, search_function
from engine.sweeps.space import Space
from engine.sweeps.study import Study, values_of
from engine.sweeps.sweep import open_sweep
from tests.sweeps import scripted

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")  # of JAX, if another test has imported it

SPACE = {"rate": "choice(0.1, 0.2, 0.3, 0.4)"}


def search(path: Path, objective, **changes) -> list[str]:
    definition, said = scripted.definition(space=SPACE, metric="objective", **changes), []
    folder, space = SweepFolder(path), Space.of(SPACE, of_config=False)
    with open_sweep(folder, definition) as (study, _):
        search_function(objective, folder, study, Asking(definition, space, study, False), said.append)
    return said


def trials(path: Path):
    definition = scripted.definition()
    return Study(SweepFolder(path).storage(definition), definition.name, "max").trials()


def test_function_is_called_with_each_point(tmp_path):
    said = search(tmp_path, lambda trial: 2 * trial["rate"])
    assert [(values_of(trial)["rate"], trial.value) for trial in trials(tmp_path)] == [
        (rate, 2 * rate) for rate in (0.1, 0.2, 0.3, 0.4)
    ]
    assert said[0] == "trial 0 (rate=0.1): 0.2"
    assert trials(tmp_path)[3].user_attrs["runs"] == ["trials/0003"]


def test_trial_of_a_killed_process_is_run_again_in_its_folder(tmp_path):
    def objective(trial: Trial) -> float:
        with open(tmp_path / "calls", "a") as file:
            file.write(f"{trial.number} {trial['rate']} {sorted(path.name for path in trial.folder.iterdir())}\n")
        trial.report(10, 0.1)
        (trial.folder / "state").write_text("half")
        if trial.number == 1 and os.getpid() != parent:
            os._exit(137)
        return float(str(trial["rate"]))

    parent = os.getpid()
    if (child := os.fork()) == 0:
        try:
            search(tmp_path, objective)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    search(tmp_path, objective)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "0 0.1 []",
        "1 0.2 []",
        "1 0.2 ['state']",
        "2 0.3 []",
        "3 0.4 []",
    ]
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE"] * 4


def test_report_ends_a_bad_trial(tmp_path):
    reached = []

    def objective(trial: Trial) -> float:
        for step in (0, 10, 20):
            number: Any = np.int64(step)
            trial.report(number, float(np.float32(-float(str(trial["rate"])))))
            reached.append((trial["rate"], step))
        return -float(str(trial["rate"]))

    said = search(tmp_path, objective, prune="halving", rung=10)
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]
    assert (0.2, 0) in reached and (0.2, 10) not in reached
    assert said[1] == "trial 1 (rate=0.2): pruned"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the objective returned None. Return a number."),
        (float("nan"), "the objective returned nan. Return a number."),
        ("text", "the objective returned 'text'. Return a number."),
    ],
)
def test_value_that_is_no_number_fails_its_trial(tmp_path, value, problem):
    search(tmp_path, lambda trial: 1.0 if trial.number else value)
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials(tmp_path)[0].user_attrs["problem"] == problem


def test_error_fails_its_trial_and_memory_is_told_apart(tmp_path):
    errors: list[Exception] = [ValueError("bad"), MemoryError(), KeyError("x"), ZeroDivisionError()]

    def objective(trial: Trial) -> float:
        raise errors[trial.number]

    search(tmp_path, objective)
    found = [(trial.user_attrs["problem"], trial.user_attrs["kind"]) for trial in trials(tmp_path)]
    assert found == [
        ("ValueError: bad", "failed"),
        ("MemoryError", "out of memory"),
        ("KeyError: 'x'", "failed"),
        ("ZeroDivisionError", "failed"),
    ]


def test_interrupt_leaves_the_trial_for_the_next_call(tmp_path):
    def objective(trial: Trial) -> float:
        if trial.number == 1:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, objective)
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "RUNNING"]
