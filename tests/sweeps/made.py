"""Folders of sweeps that tests write with Optuna, without a driver and without training."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna

from engine.config import load, to_text
from engine.run import status
from engine.sweeps import study
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.space import Space, overrides

CONFIG = "convoy_zoo.configs.digits"
SPACE = {
    "optimizer.learning_rate": "log(1e-4, 1e-2)",
    "task.width": "choice(16, 64)",
    "optimizer.weight_decay": "when('task.width', 64, uniform(0, 0.1))",
}
BEGAN = datetime(2026, 1, 1, 12, 0, 0)
METRIC = "heldout/accuracy"


@dataclasses.dataclass(frozen=True)
class Made:
    """A trial: its state in Optuna, its reported values, and its user attributes in addition to the settings."""

    values: Mapping[str, Any]
    state: str = "COMPLETE"
    value: float | None = None
    reported: Mapping[int, float] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    began_s: float = 0.0


def complete(rate: float, width: int, value: float, seconds: float = 60.0, began_s: float = 0.0, **more: Any) -> Made:
    """Returns a completed trial of 90 steps."""
    values = {"optimizer.learning_rate": rate, "task.width": width}
    values |= {"optimizer.weight_decay": 0.02} if width == 64 else {}
    attributes = {study.STEPS: 90, study.SECONDS: seconds, study.RESULTS: [value], study.INTERVAL: None, **more}
    return Made(values, "COMPLETE", value, {30: value - 0.1, 90: value}, attributes, began_s)


def pruned(rate: float, value: float, steps: int = 30, began_s: float = 0.0) -> Made:
    """Returns a trial that was pruned."""
    attributes = {study.STEPS: steps, study.SECONDS: 20.0, study.RESULTS: [value]}
    values = {"optimizer.learning_rate": rate, "task.width": 16}
    return Made(values, "PRUNED", None, {steps: value}, attributes, began_s)


def failed(rate: float, problem: str, kind: str, began_s: float = 0.0) -> Made:
    """Returns a trial that has failed."""
    attributes = {study.STEPS: 0, study.SECONDS: 1.0, study.PROBLEM: problem, study.KIND: kind}
    return Made({"optimizer.learning_rate": rate, "task.width": 16}, "FAIL", None, {}, attributes, began_s)


def running(rate: float, reported: Mapping[int, float], began_s: float = 0.0) -> Made:
    """Returns a trial that runs."""
    return Made({"optimizer.learning_rate": rate, "task.width": 16}, "RUNNING", None, reported, {}, began_s)


def define(name: str = "sweep", **changes: Any) -> Definition:
    """Returns a definition."""
    space = Space.parse(None, changes.pop("space", SPACE)).to_texts()
    given: dict[str, Any] = dict(
        name=name, reference=CONFIG, overrides=["train.total=90 steps"], config={}, space=space, metric=METRIC,
        direction="max", sampler="tpe", prune="halving", rung=0, factor=3, trials=9, seeds=1, budget="", seed=0,
        storage="",
    )  # fmt: skip
    return Definition(**{**given, **changes})


def make_sweep(folder: Path, made: Sequence[Made], **changes: Any) -> Path:
    """Writes a sweep with these trials and returns its folder. `changes` are fields of the definition."""
    definition = define(folder.name, **changes)
    sweep = SweepFolder(folder)
    sweep.agree(definition)
    found = optuna.create_study(
        storage=study.open_storage(sweep.storage(definition)),
        study_name=definition.name,
        direction="maximize" if definition.direction == "max" else "minimize",
    )
    space = Space.parse(None, definition.space)
    for trial in made:
        found.add_trial(_frozen(space, trial))
    return folder


def _frozen(space: Space, made: Made) -> optuna.trial.FrozenTrial:
    fixed = optuna.trial.FixedTrial(space.params(made.values))
    space.suggest(fixed)
    frozen = optuna.trial.create_trial(
        state=optuna.trial.TrialState[made.state],
        value=made.value,
        params=fixed.params,
        distributions=fixed.distributions,
        user_attrs={study.VALUES: json.dumps(dict(made.values)), **made.attributes},
        intermediate_values=dict(made.reported),
    )
    frozen.datetime_start = BEGAN + timedelta(seconds=made.began_s)
    if frozen.state.is_finished():
        frozen.datetime_complete = frozen.datetime_start + timedelta(seconds=made.attributes[study.SECONDS])
    return frozen


def make_run(folder: Path, trial: int, values: Mapping[str, Any], seed: str = "", **fields: Any) -> Path:
    """Writes the run directory of a trial of a sweep: its config with the hook of the sweep, and its status."""
    run = folder / "trials" / f"{trial:04}" / seed
    run.mkdir(parents=True)
    hook = ["hooks.sweep.target=engine.sweeps.pruning.Pruning", f"hooks.sweep.decisions=decisions/{trial}.json"]
    (run / "config.txt").write_text(to_text(load(CONFIG, ["train.total=90 steps", *overrides(values), *hook])))
    status.write(run / "status.json", status.Status(**{"state": "done", "step": 90, "total_steps": 90, **fields}))
    return run
