"""One run of a learning-rate range test: its config, the schedule that grows, and the hook that ends it early.

It is an ordinary run on the data, the mesh and the processes of the config, in a folder that is removed afterwards.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from engine.api.train import train
from engine.base import json_text
from engine.base.duration import Duration
from engine.base.errors import ConfigError
from engine.cluster import group
from engine.config.schema import Config, Group, Hook, Optimizer, Plain, Stop
from engine.loop.divergence import Diverged
from engine.loop.hooks import Stop as StopRun
from engine.loop.trainer import Trainer
from engine.training.state import TrainState
from engine.tuning.range_curve import RangeCurve, analyse

HOOK = "tune"
_LOOKS = 20  # calls of the hook in a test
_ADAM_RATE = "adam_learning_rate"  # argument of Muon: the peak of its Adam
_ROW = {"step": int, str: object}  # of metrics.jsonl


def growth(steps: int, ratio: float) -> Callable[[jax.Array | int], jax.Array]:
    """Returns a schedule that grows exponentially from 1 at step 0 to `ratio` at the last of `steps` steps."""
    rate = math.log(ratio) / (steps - 1)
    return lambda step: jnp.exp(jnp.minimum(step, steps - 1) * rate)


class EndEarly:
    """A hook that ends the run once its loss has diverged. The primary decides, from the rows that are written.

    Args:
        steps: steps of the whole range.
    """

    def __init__(self, steps: int):
        self._steps = steps

    def run(self, trainer: Trainer, state: TrainState, step: int) -> StopRun | None:
        """Called between two dispatches."""
        if not group.is_primary():
            return None  # a Stop of any process ends the run
        curve = read_curve(trainer.directory.metrics, self._steps)
        if curve is None or curve.diverged is None:
            return None
        return StopRun(f"the loss has diverged at a learning rate of {curve.diverged:.3g}")


def read_curve(metrics: Path, steps: int, seed: int = 0) -> RangeCurve | None:
    """Returns the curve of the rows that a run has written; None if there are too few to say anything."""
    try:
        rows = [row for row in json_text.read_lines(metrics, _ROW).values if "batch" in row]
    except OSError:
        return None
    if len(rows) < 2:
        return None
    return analyse(
        [float(row["learning_rate"]) for row in rows], [_number(row.get("loss")) for row in rows], steps, seed
    )


def _number(value: object) -> float:
    """Returns a loss; one that is not finite is text."""
    return float(value) if isinstance(value, int | float) else math.nan


def range_config(config: Config, low: float, high: float, steps: int, seed: int) -> Config:
    """Returns the config of a test: that of the user, with a learning rate that grows, and the training alone.

    Learning rates of groups, and that of Muon's Adam, keep their ratio to `optimizer.learning_rate`. A group that is
    frozen at the start stays frozen. Bad updates are skipped, and no loss is a spike.

    Args:
        config: the config of the user.
        low, high: learning rate of the first and of the last step.
        steps: number of steps.
        seed: `train.seed`.

    Raises:
        ConfigError: a learning rate has no ratio to `optimizer.learning_rate`.
    """
    optimizer = config.optimizer
    groups = {name: _group(section, optimizer, f"optimizer.groups.{name}", steps, low)
              for name, section in optimizer.groups.items()}  # fmt: skip
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=low,
        schedule=f"{__name__}.{growth.__name__}",
        schedule_arguments={"steps": steps, "ratio": high / low},
        warmup=Duration(0, "steps"),
        arguments=_arguments(optimizer.arguments, optimizer, "optimizer", low),
        groups=groups,
    )
    every = Duration(max(1, steps // _LOOKS), "steps")
    return dataclasses.replace(
        quiet(config),
        optimizer=optimizer,
        hooks={HOOK: Hook(every=every)},
        train=dataclasses.replace(config.train, total=Duration(steps, "steps"), seed=seed, steps_per_dispatch=1),
        resilience=dataclasses.replace(quiet(config).resilience, divergence="skip", spike=None),
    )


def quiet(config: Config) -> Config:
    """Returns a config that trains as before, without evaluations, hooks, trackers, checks and output."""
    return dataclasses.replace(
        config,
        checkpoint=dataclasses.replace(config.checkpoint, every=None, best=None, on_failure="stop"),
        stop=Stop(),
        evaluations={},
        hooks={},
        log=dataclasses.replace(
            config.log,
            every=Duration(1, "steps"),
            tensorboard=False,
            progress="none",
            verbose=False,
            examples=False,
            trackers={},
            report=False,
            layers=None,
        ),
        profile=dataclasses.replace(config.profile, start=None),
        resilience=dataclasses.replace(config.resilience, replica_check=None, gradient_check=None),
    )


def _group(section: Group, optimizer: Optimizer, where: str, steps: int, low: float) -> Group:
    scale = section.learning_rate_scale
    if section.learning_rate is not None:
        scale *= _ratio(section.learning_rate, optimizer, f"{where}.learning_rate")
    frozen = section.frozen_until is not None and section.frozen_until.value > 0
    return dataclasses.replace(
        section,
        learning_rate=None,
        learning_rate_scale=scale,
        schedule=None,
        schedule_arguments={},
        warmup=None,
        final_scale=None,
        frozen_until=Duration(10 * steps, "steps") if frozen else None,
        arguments=_arguments(section.arguments, optimizer, where, low),
    )


def _arguments(arguments: Mapping[str, Plain], optimizer: Optimizer, where: str, low: float) -> dict[str, Plain]:
    """Returns arguments whose learning rates keep their ratio to that of the optimizer."""
    found: dict[str, Any] = dict(arguments)
    if isinstance(rate := found.get(_ADAM_RATE), int | float):
        found[_ADAM_RATE] = low * _ratio(rate, optimizer, f"{where}.{_ADAM_RATE}")
    return found


def _ratio(rate: float, optimizer: Optimizer, where: str) -> float:
    if not optimizer.learning_rate:
        raise ConfigError(
            f"{where} = {rate:g}: the test keeps its ratio to optimizer.learning_rate, which is 0. Set both, or write "
            "learning_rate_scale."
        )
    return rate / optimizer.learning_rate


def run_test(config: Config, workdir: Path, steps: int, given: Mapping[str, Any]) -> RangeCurve | None:
    """Trains a test and returns its curve, in the primary; None in other processes. Every process must call it.

    Args:
        config: config of the test, of `range_config`.
        workdir: its run directory, which is the same for all processes.
        steps: number of steps.
        given: `task` and `data` of `engine.train`.
    """
    with contextlib.suppress(Diverged):  # as is meant to happen; the rows up to there are written
        train(config, workdir=workdir, hooks={HOOK: EndEarly(steps)}, **given)
    if not group.is_primary():
        return None
    found = read_curve(workdir / "metrics.jsonl", steps, config.train.seed)
    if found is None:
        raise ConfigError("tune lr: the test has written no two rows of metrics. Use more --steps.")
    return found
