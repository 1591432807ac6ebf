import json
import os
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from engine.base.errors import ConfigError
from engine.sweeps.space import Space
from engine.sweeps.study import (
    ABANDONED,
    KIND,
    SAMPLERS,
    Study,
    best_first,
    make_pruner,
    make_sampler,
    open_storage,
    repair_journal,
    values_of,
)

SPACE = Space.of(
    {
        "optimizer.learning_rate": "log(1e-4, 1e-2)",
        "optimizer.weight_decay": "uniform(0, 1)",
        "task.width": "integer(8, 64)",
    }
)
RATE = "optimizer.learning_rate"


def ask(study: Study, number: int, kind: str = "random") -> tuple[int, dict[str, Any]]:
    return study.ask(SPACE.suggest, make_sampler(kind, 0, number, parallel=True))


def test_journal_with_an_incomplete_line_is_lost_without_the_repair(tmp_path):
    path = tmp_path / "journal.log"
    for repair in (False, True):
        path.unlink(missing_ok=True)
        first, _ = ask(Study(str(path), "sweep", "max"), 0)
        with open(path, "ab") as file:
            file.write(b'{"op_code": 4, "work')
        if not repair:
            with pytest.raises((json.JSONDecodeError, KeyError)):
                ask(Study(str(path), "sweep", "max"), 1)
                Study(str(path), "sweep", "max").trials()
            continue
        repair_journal(path)
        ask(Study(str(path), "sweep", "max"), 1)
        assert [trial.number for trial in Study(str(path), "sweep", "max").trials()] == [first, first + 1]


def test_repair_keeps_a_complete_journal_and_creates_none(tmp_path):
    path = tmp_path / "journal.log"
    repair_journal(path)
    assert not path.exists()
    Study(str(path), "sweep", "max")
    before = path.read_bytes()
    repair_journal(path)
    assert path.read_bytes() == before


def test_repair_removes_the_lock_of_a_killed_writer(tmp_path):
    path = tmp_path / "journal.log"
    Study(str(path), "sweep", "max")
    JournalFileSymlinkLock(str(path)).acquire()
    assert sorted(os.listdir(tmp_path)) != ["journal.log"]  # Optuna would wait 30 s for it
    repair_journal(path)
    assert os.listdir(tmp_path) == ["journal.log"]


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind not in ("grid", "gp")])
def test_sampler_continues_inside_the_space_without_repeating_values(tmp_path, kind):
    seen = []
    for number in range(8):
        study = Study(str(tmp_path / "journal.log"), "sweep", "max")  # a new process for each trial
        trial, values = ask(study, number, kind)
        assert 1e-4 <= values[RATE] <= 1e-2
        assert 0 <= values["optimizer.weight_decay"] <= 1
        assert values["task.width"] in range(8, 65)
        seen.append(values[RATE])
        if number >= 3:  # the first three run at the same time
            study.complete(trial, values[RATE], {})
    assert len(set(seen)) == len(seen)


def test_quasi_random_trials_differ_in_a_setting_that_the_first_one_lacks(tmp_path):
    texts = {"task.kind": "choice('a', 'b')", "task.width": "when('task.kind', 'b', uniform(0, 1))"}
    space, found = Space.of(texts), []
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    for number, kind in enumerate("abbb"):
        fixed = {"task.kind": space.params({"task.kind": kind})["task.kind"]}
        trial, values = study.ask(space.suggest, make_sampler("qmc", 0, number, parallel=False), fixed)
        study.complete(trial, 0.5, {})
        found.append(values.get("task.width"))
    assert found[0] is None and len(set(found)) == 4


def test_gaussian_process_needs_a_library_that_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ConfigError, match=r"--sampler=gp: needs the package torch"):
        make_sampler("gp", 0, 0, parallel=False)


def test_gaussian_process_chooses_inside_the_space(tmp_path):
    pytest.importorskip("torch")
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    for number in range(2):
        trial, values = ask(study, number, "gp")
        assert 1e-4 <= values[RATE] <= 1e-2
        study.complete(trial, values[RATE], {})


def test_grid_takes_the_given_point(tmp_path):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    point = {RATE: 2e-3, "optimizer.weight_decay": 0.5, "task.width": 16}
    _, values = study.ask(SPACE.suggest, None, SPACE.params(point))
    assert values == point


def test_trial_without_values_is_abandoned_and_does_not_count(tmp_path):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    number, values = ask(study, 0)

    def killed(trial):
        raise SystemExit

    with pytest.raises(SystemExit):
        study.ask(killed, make_sampler("random", 0, 1, parallel=False))
    again = Study(str(tmp_path / "journal.log"), "sweep", "max")
    recovered = again.recover()
    assert [(trial.number, values_of(trial)) for trial in recovered] == [(number, values)]
    assert [trial.number for trial in again.trials()] == [number]
    raw = optuna.load_study(storage=open_storage(str(tmp_path / "journal.log")), study_name="sweep").trials
    assert [trial.user_attrs.get(KIND) for trial in raw] == [None, ABANDONED]


def test_value_of_a_step_is_reported_once(tmp_path):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    number, _ = ask(study, 0)
    assert study.first_step() == 1
    assert study.report(number, 10, 0.5)
    assert not study.report(number, 10, 0.9)
    assert study.trials()[0].intermediate_values == {10: 0.5}
    assert study.first_step() == 10


def test_ends_of_trials_are_stored_in_a_database(tmp_path):
    url = f"sqlite:///{tmp_path}/sweeps.db"
    study = Study(url, "sweep", "min")
    numbers = [ask(study, number)[0] for number in range(4)]
    study.report(numbers[1], 5, float("nan"))
    study.complete(numbers[0], 0.25, {"results": [0.2, 0.3]})
    study.prune(numbers[1], {"steps": 5})
    study.fail(numbers[2], {KIND: "failed"})
    found = Study(url, "sweep", "min")
    assert [trial.state.name for trial in found.trials()] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert found.trials()[0].user_attrs["results"] == [0.2, 0.3]
    assert [trial.number for trial in found.recover()] == [numbers[3]]
    with pytest.raises(ConfigError, match=r"sqlit:///x: Optuna cannot open this storage \(.+\)\. Check the address"):
        open_storage("sqlit:///x")


def test_best_trial_is_the_earlier_of_equal_ones(tmp_path):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    for value in (0.1, 0.9, 0.9):
        study.complete(ask(study, 0)[0], value, {})
    ask(study, 3)
    assert [trial.number for trial in best_first(study.trials(), "max")] == [1, 2, 0]
    assert [trial.number for trial in best_first(study.trials(), "min")] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["halving", "median"])
def test_value_that_is_not_finite_is_pruned(tmp_path, kind):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    pruner = make_pruner(kind, 10, 2)
    for number in range(5):
        trial, _ = ask(study, number)
        study.report(trial, 10, 0.5)
        study.complete(trial, 0.5, {})
    trial, _ = ask(study, 5)
    study.report(trial, 10, float("nan"))
    assert study.should_prune(trial, pruner)


@pytest.mark.parametrize("kind", ["halving", "median"])
def test_trials_may_report_step_zero(tmp_path, kind):
    study = Study(str(tmp_path / "journal.log"), "sweep", "max")
    trial, _ = ask(study, 0)
    study.report(trial, 0, 0.5)
    assert not study.should_prune(trial, make_pruner(kind, study.first_step(), 2))
