import math
import os
from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.launch.signals import Signals
from engine.sweeps.decisions import read_decision
from engine.sweeps.driver import SweepStopped
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.study import Study, values_of
from engine.sweeps.workers import Workers
from tests.sweeps import scripted
from tests.sweeps.scripted import ScriptedWorkers, drive

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")  # of JAX, if another test has imported it

RATE = "optimizer.learning_rate"
RESULTS = {0.1: 0.13, 0.2: 0.23, 0.3: 0.33, 0.4: 0.43}


def outcome(path: Path, definition: Definition) -> list[tuple]:
    """Returns the trials of a sweep, without their times and numbers."""
    study = Study(SweepFolder(path).storage(definition), definition.name, definition.direction)
    found = [
        (
            values_of(trial)[RATE],
            trial.state.name,
            trial.value,
            trial.user_attrs.get("results"),
            trial.user_attrs["steps"],
        )
        for trial in study.trials()
    ]
    return sorted(found)


def test_every_point_of_a_grid_is_trained_once(tmp_path):
    definition = scripted.definition()
    said = drive(tmp_path, definition)
    found = outcome(tmp_path, definition)
    assert found == [(rate, "COMPLETE", value, [value], 30) for rate, value in RESULTS.items()]
    assert len(set(scripted.trained(SweepFolder(tmp_path)))) == len(scripted.trained(SweepFolder(tmp_path))) == 12
    assert said[-1].startswith("trial 3 (learning_rate=0.4): heldout/accuracy 0.43. 4 of 4 trials are finished.")


STRIDE = int(os.environ.get("CONVOY_TEST_STRIDE", "9"))
"""Every n-th write is the last one of a driver. With 1, the test takes two minutes."""


@pytest.mark.parametrize("prune", ["", "halving"])
def test_sweep_killed_at_any_write_continues_without_loss_or_repetition(tmp_path, prune):
    definition = scripted.definition(prune=prune)
    undisturbed = tmp_path / "undisturbed"
    drive(undisturbed, definition)
    expected, number, killed = outcome(undisturbed, definition), 0, True
    while killed:
        path = tmp_path / str(number)
        killed = _killed_at(path, definition, number)
        if killed:
            drive(path, definition)
        found = outcome(path, definition)
        assert [row[0] for row in found] == [row[0] for row in expected], number
        assert [row[1] == "PRUNED" for row in found] == [row[4] < scripted.TOTAL for row in found], number
        if not prune:  # what a kill changes in the order of trials may change which are pruned
            assert found == expected, number
        lines = scripted.trained(SweepFolder(path))
        assert len(lines) == len(set(lines)), f"write {number}: trained twice"
        number += STRIDE
    assert number > 40


def _killed_at(path: Path, definition: Definition, number: int) -> bool:
    """Runs a sweep in a child that ends at its n-th write; returns False if it has not so many."""
    child = os.fork()
    if child == 0:
        try:
            scripted.end_at_write(number)
            drive(path, definition)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137


def test_halving_ends_bad_trials_at_the_first_evaluation(tmp_path):
    definition = scripted.definition(prune="halving", space={RATE: "choice(0.4, 0.3, 0.2, 0.1)"})
    drive(tmp_path, definition)
    found = {rate: (state, steps) for rate, state, _, _, steps in outcome(tmp_path, definition)}
    assert found[0.4] == ("COMPLETE", 30)
    assert found[0.1] == ("PRUNED", 10)


def test_pruned_trial_stays_pruned_if_the_driver_was_killed_before_it_recorded_the_end(tmp_path):
    class Killed(ScriptedWorkers):
        def ended(self) -> dict[str, int]:
            codes = super().ended()
            assert not any(read_decision(tmp_path / "decisions" / f"{name}.json")[1] for name in codes), "killed"
            return codes

    definition = scripted.definition(prune="halving", space={RATE: "choice(0.4, 0.3, 0.2, 0.1)"})
    with pytest.raises(AssertionError, match="killed"):
        drive(tmp_path, definition, Killed)
    drive(tmp_path, definition)
    assert [row[1] == "PRUNED" for row in outcome(tmp_path, definition)] == [True, True, True, False]


def test_trials_are_ranked_by_the_mean_of_their_seeds(tmp_path):
    definition = scripted.definition(seeds=3)
    drive(tmp_path, definition)
    rate, state, value, results, steps = outcome(tmp_path, definition)[0]
    assert (rate, state, steps) == (0.1, "COMPLETE", 90)
    assert results == [0.13, 0.14, 0.15]
    assert value == pytest.approx(0.14)
    assert (tmp_path / "trials" / "0000" / "seed-2" / "status.json").exists()


def test_pruned_trial_trains_only_its_first_seed(tmp_path):
    definition = scripted.definition(seeds=2, prune="halving", space={RATE: "choice(0.4, 0.3, 0.2, 0.1)"})
    drive(tmp_path, definition)
    found = {rate: (state, len(results)) for rate, state, _, results, _ in outcome(tmp_path, definition)}
    assert found[0.4] == ("COMPLETE", 2)
    assert found[0.1] == ("PRUNED", 1)


def test_failed_trial_keeps_its_sentence_and_out_of_memory_is_told_apart(tmp_path):
    definition = scripted.definition()
    failures = {0.1: [(1, "ValueError: bad width (model.py:3).")], 0.2: [(1, "a device is out of memory (8 GiB).")]}
    said = drive(tmp_path, definition, lambda folder: ScriptedWorkers(folder, failures))
    study = Study(SweepFolder(tmp_path).storage(definition), definition.name, "max")
    kinds = {values_of(trial)[RATE]: trial.user_attrs.get("kind") for trial in study.trials()}
    assert kinds == {0.1: "failed", 0.2: "out of memory", 0.3: None, 0.4: None}
    assert any("failed: ValueError: bad width (model.py:3). " in text for text in said)


def test_killed_run_is_started_again_and_resumes(tmp_path):
    definition = scripted.definition()
    workers: list[ScriptedWorkers] = []

    def make(folder: SweepFolder) -> Workers:
        workers.append(ScriptedWorkers(folder, {0.1: [(137, "")]}))
        return workers[0]

    drive(tmp_path, definition, make)
    assert {state for _, state, *_ in outcome(tmp_path, definition)} == {"COMPLETE"}
    assert workers[0].started.count("trial-0000") == 2


def test_repeated_failure_ends_the_trial_instead_of_starting_again(tmp_path):
    definition = scripted.definition(trials=1)
    failures = {0.1: [(42, f"step {step} could not be saved.") for step in range(20)]}
    made: list[ScriptedWorkers] = []

    def make(folder: SweepFolder) -> Workers:
        made.append(ScriptedWorkers(folder, failures))
        return made[0]

    drive(tmp_path, definition, make)
    assert outcome(tmp_path, definition)[0][1] == "FAIL"
    assert len(made[0].started) == 3


def test_run_without_the_metric_ends_the_sweep(tmp_path):
    definition = scripted.definition(metric="heldout/acuracy")
    with pytest.raises(ConfigError, match=r"has not measured it\. Did you mean heldout/accuracy\?"):
        drive(tmp_path, definition)


def test_values_that_the_config_refuses_fail_their_trial_alone(tmp_path):
    definition = scripted.definition(
        space={"train.global_batch_size": "choice(64)"}, overrides=["train.totl=3"], trials=1
    )
    drive(tmp_path, definition)
    study = Study(SweepFolder(tmp_path).storage(definition), definition.name, "max")
    assert "unknown field" in study.trials()[0].user_attrs["problem"]


def test_trial_whose_result_is_not_finite_has_failed(tmp_path, monkeypatch):
    results = dict(RESULTS)
    monkeypatch.setattr(scripted, "accuracy", lambda rate, seed, step: math.nan if rate == 0.2 else results[rate])
    definition = scripted.definition()
    said = drive(tmp_path, definition)
    assert [state for _, state, *_ in outcome(tmp_path, definition)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert any("failed: heldout/accuracy is nan at step 30. " in text for text in said)


def test_other_seeds_of_a_failed_trial_end_without_a_further_value(tmp_path):
    class SlowToStop(ScriptedWorkers):
        """A run measures once more before it stops; the second seed fails at once."""

        def ended(self) -> dict[str, int]:
            for name in self._stopped:
                self._advance(self._running[name])
            found = super().ended()
            return {name: 1 if name.endswith("seed-1") else code for name, code in found.items()}

        def start(self, job):
            super().start(job)
            if job.name.endswith("seed-1"):
                self._stopped.add(job.name)

    definition = scripted.definition(seeds=2, trials=1)
    drive(tmp_path, definition, SlowToStop)
    assert [state for _, state, *_ in outcome(tmp_path, definition)] == ["FAIL"]


def test_signal_ends_the_sweep_and_the_same_sweep_continues(tmp_path):
    definition = scripted.definition()

    class Received(Signals):
        @property
        def received(self) -> tuple[int, ...]:
            return (15,)

    with pytest.raises(SweepStopped, match="The same command continues it") as stopped:
        drive(tmp_path, definition, signals=Received())
    assert stopped.value.exit_code == 42
    drive(tmp_path, definition)
    assert [state for _, state, *_ in outcome(tmp_path, definition)] == ["COMPLETE"] * 4
