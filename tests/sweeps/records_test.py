import json
import os
from datetime import datetime

import optuna
import pytest

from engine.base.errors import ConfigError, RunError
from engine.sweeps import study
from engine.sweeps.records import read_sweep
from tests.sweeps.made import Made, complete, failed, make_run, make_sweep, pruned, running


def numbers(folder):
    return [(trial.number, trial.state) for trial in read_sweep(folder).trials]


def test_trials_are_ranked_by_state_and_then_by_value_or_length(tmp_path):
    trials = [
        failed(1e-3, "no", "failed"), pruned(1e-3, 0.9), complete(1e-3, 16, 0.5), running(1e-3, {}),
        complete(2e-3, 16, 0.8), pruned(2e-3, 0.95), pruned(3e-3, 0.2, steps=60),
    ]  # fmt: skip
    made = make_sweep(tmp_path / "sweep", trials)
    assert numbers(made) == [
        (4, "complete"), (2, "complete"), (6, "pruned"), (5, "pruned"), (1, "pruned"), (3, "running"), (0, "failed"),
    ]  # fmt: skip
    made = make_sweep(tmp_path / "least", trials, direction="min")
    assert [number for number, state in numbers(made) if state in ("complete", "pruned")] == [2, 4, 6, 1, 5]


def test_running_trial_has_the_steps_of_its_runs(tmp_path):
    made = make_sweep(tmp_path / "sweep", [running(1e-3, {30: 0.4, 60: 0.6})], seeds=3)
    values = {"optimizer.learning_rate": 1e-3}
    make_run(made, 0, values, "seed-0", state="done", step=90)
    make_run(made, 0, values, "seed-1", state="training", step=60)
    (trial,) = read_sweep(made).trials
    assert (trial.steps, trial.total, trial.value) == (150, 270, 0.6)
    assert trial.runs == ("trials/0000/seed-0", "trials/0000/seed-1")
    assert trial.seconds is not None and trial.started is not None
    assert trial.seconds == pytest.approx((datetime.now() - trial.started).total_seconds(), abs=60)


def test_trials_without_values_and_abandoned_ones_do_not_count(tmp_path):
    made = make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5)])
    abandoned = {study.KIND: study.ABANDONED, study.VALUES: "{}"}
    make_more(made, [{"state": "FAIL", "attributes": abandoned}, {"state": "RUNNING", "attributes": {}}])
    assert numbers(made) == [(0, "complete")]


def make_more(folder, trials):
    """Adds trials that have no values."""
    storage = study.open_storage(str(folder / "journal.log"))
    found = optuna.load_study(study_name=folder.name, storage=storage)
    for trial in trials:
        state = optuna.trial.TrialState[trial["state"]]
        found.add_trial(optuna.trial.create_trial(state=state, user_attrs=trial["attributes"]))


def test_incomplete_last_line_of_the_journal_is_ignored_and_nothing_is_written(tmp_path):
    made = make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5), complete(2e-3, 16, 0.6)])
    journal = made / "journal.log"
    whole = journal.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    os.truncate(journal, len(whole) - 5)
    torn = journal.read_bytes()
    assert numbers(made) == [(0, "complete")]
    assert journal.read_bytes() == torn and {*made.rglob("*")} == {*before}


def test_damaged_journal_is_refused_with_a_sentence(tmp_path):
    made = make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5)])
    lines = (made / "journal.log").read_text().splitlines(keepends=True)
    (made / "journal.log").write_text("".join([lines[0], "{\n", *lines[1:]]))
    with pytest.raises(ConfigError, match=r"journal\.log: Optuna cannot open this storage"):
        read_sweep(made)


def test_sweep_whose_driver_has_not_begun_has_no_trials(tmp_path):
    made = make_sweep(tmp_path / "sweep", [])
    (made / "journal.log").unlink()
    assert read_sweep(made).trials == [] and not (made / "journal.log").exists()


def test_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no sweep"):
        read_sweep(tmp_path)


def test_tuples_and_values_that_are_not_finite_are_read(tmp_path):
    made = make_sweep(
        tmp_path / "sweep",
        [Made({"task.shape": (3, 4)}, "PRUNED", None, {30: float("nan")}, {study.SECONDS: 1.0})],
        space={"task.shape": "choice((1, 2), (3, 4))"},
    )
    (trial,) = read_sweep(made).trials
    assert trial.values == {"task.shape": (3, 4)} and trial.value is None
    assert "[3, 4]" in json.dumps(trial.values)
