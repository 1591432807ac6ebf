"""Suggests a batch size: the gradient noise scale at several steps of a run, and what other batch sizes cost."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from engine.api.objects import Objects, with_objects
from engine.api.prepared import AnyConfig, resolve_config
from engine.api.saved_run import SavedRun
from engine.api.train import train
from engine.base.duration import Duration
from engine.base.errors import ConfigError
from engine.cluster import group
from engine.config.schema import Config, Hook
from engine.data.adapt import Readable
from engine.loop.hooks import Stop
from engine.loop.trainer import Trainer
from engine.training.state import TrainState
from engine.training.task import Task
from engine.tuning.folder import shared_folder
from engine.tuning.gradient_noise import measure, open_run
from engine.tuning.noise import FEWEST, NoiseScale, noise_scale, trade_offs
from engine.tuning.range_run import HOOK, quiet

MOST = 10_000  # batches
NARROW = 3.0
"""Ratio of the ends of an interval up to which a suggestion is sure."""


@dataclass(frozen=True)
class BatchSizes:
    """The result of `batch_size`.

    Attributes:
        suggestion: the noise scale in examples, the geometric mean over the second half of the curve: the batch size at
            which a run needs twice the fewest steps and twice the fewest examples. None where `problem` says why.
        interval: the range of the 95 % intervals there; the upper end is infinite where only the lower end is known.
        configured: `train.global_batch_size`.
        curve: the noise scale at each step.
        warnings: sentences about what makes it less than exact.
        problem: why there is no suggestion.
    """

    suggestion: float | None
    interval: tuple[float, float]
    configured: int
    curve: Sequence[NoiseScale]
    warnings: Sequence[str]
    problem: str

    @property
    def certainty(self) -> str:
        """How sure the suggestion is, as a sentence; "" without one."""
        if self.suggestion is None:
            return ""
        low, high = self.interval
        known = len(_known(_later(self.curve)))
        text = f"The 95 % intervals of the last {known} points reach" if known > 1 else "The 95 % interval reaches"
        text = f"{text} from {low:,.0f} to {high:,.0f} examples"
        if high <= NARROW * low:
            return f"{text}."
        return (
            f"{text}: a rough hint. More --batches narrow an interval; the noise scale also varies from step to step."
        )

    @property
    def trade_offs(self) -> list[tuple[int, float, float]]:
        """Batch sizes, with steps and examples of a run relative to the fewest; the configured one is among them."""
        return [] if self.suggestion is None else trade_offs(self.suggestion, self.configured)


class StopAt:
    """A hook that ends a run at a step."""

    def __init__(self, step: int):
        self._step = step

    def run(self, trainer: Trainer, state: TrainState, step: int) -> Stop | None:
        """Called between two dispatches."""
        return Stop("the steps to measure are trained") if step >= self._step else None


def batch_size(
    config: AnyConfig,
    *,
    steps: int = 200,
    points: int = 4,
    batches: int = 32,
    task: Task | None = None,
    data: Readable | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> BatchSizes:
    """Returns the batch size that the gradient noise scale suggests (McCandlish et al. 2018, arXiv:1812.06162).

    It trains the first steps of a config in a temporary folder, and computes the gradients of several batches at some
    of them. The noise scale usually grows during training. In a run of several processes, each calls it; on several
    machines, TMPDIR has to be a folder that they share.

    Args:
        config: as for `engine.train`.
        steps: steps to train.
        points: number of steps at which the noise is measured, evenly spaced.
        batches: number of batches of each measurement, of `train.global_batch_size` examples.
        task, data: as for `engine.train`.
        on_step: called with each step before it is measured.

    Raises:
        ConvoyError: an argument is wrong, or the noise scale of the Task is not defined.
    """
    _check(batches)
    if not 1 <= points <= steps:
        raise ConfigError(f"--points = {points}, --steps = {steps}: allowed are 1 point to as many as there are steps.")
    with shared_folder() as folder:
        found = resolve_config(config)
        given = {name: value for name, value in (("task", task), ("data", data)) if value is not None}
        workdir = folder / "run"
        wanted = _train(found, steps, points, workdir, given)
        objects = with_objects(found, task, data, {}, {})[1] if given else Objects()
        saved = SavedRun(workdir)
        at = [step for step in group.run_on_primary(saved.steps, "the checkpoints") if step in wanted]
        return _measure(saved, objects, at, batches, on_step)


def batch_size_of_run(
    run: str | Path,
    *,
    at: Sequence[int] = (),
    batches: int = 32,
    task: Task | None = None,
    data: Readable | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> BatchSizes:
    """Returns the batch size that the gradient noise scale at the checkpoints of a run suggests, as `batch_size` does.

    Args:
        run: the run directory, to which nothing is written.
        at: steps of the checkpoints; all of them by default.
        batches: number of batches of each measurement, of `train.global_batch_size` examples.
        task, data: the objects with which the run was started from Python, if it was.
        on_step: called with each step before it is measured.

    Raises:
        ConvoyError: an argument is wrong, the run cannot be read, or the noise scale of the Task is not defined.
    """
    _check(batches)
    return _measure(SavedRun(run), Objects(task=task, data=data), at, batches, on_step)


def _check(batches: int) -> None:
    if not FEWEST <= batches <= MOST:
        raise ConfigError(f"--batches = {batches}: allowed are {FEWEST} to {MOST:,}.")


def _train(config: Config, steps: int, points: int, workdir: Path, given: dict[str, Any]) -> range:
    """Trains the first steps of a config, with its own schedule; returns the steps of the checkpoints to measure.

    A save that is due while an earlier one is slow is left out. A group that is unfrozen makes one more.
    """
    every = Duration(steps // points, "steps")
    config = quiet(config)
    most = points + len(config.optimizer.groups) + 1
    checkpoint = dataclasses.replace(config.checkpoint, every=every, keep_latest=most)
    config = dataclasses.replace(config, checkpoint=checkpoint, hooks={HOOK: Hook(every=every)})
    summary = train(config, workdir=workdir, hooks={HOOK: StopAt(steps // points * points)}, **given)
    if summary.step < steps // points * points:
        raise ConfigError(
            f"--steps = {steps}: the run of this config has only {summary.step} steps. Set --steps={summary.step}."
        )
    return range(steps // points, steps + 1, steps // points)


def _measure(
    saved: SavedRun, objects: Objects, at: Sequence[int], batches: int, on_step: Callable[[int], None]
) -> BatchSizes:
    found = group.run_on_primary(saved.steps, "the checkpoints to measure")
    if missing := [step for step in at if step not in found]:
        raise ConfigError(
            f"{saved.directory}: there is no checkpoint of step {missing[0]}. Found: "
            f"{', '.join(map(str, found)) or 'none'}."
        )
    if not (steps := sorted(set(at) or found)):
        raise ConfigError(f"{saved.directory}: there is no checkpoint to measure. Train first.")
    opened = open_run(saved, objects)
    curve = []
    for step in steps:
        on_step(step)
        curve.append(noise_scale(step, measure(opened, step, batches)))
    return suggest(curve, int(opened.prepared.config.train.global_batch_size), opened.warnings)


def suggest(curve: Sequence[NoiseScale], configured: int, warnings: Sequence[str]) -> BatchSizes:
    """Returns what the second half of the measurements suggests."""
    last = curve[-1]
    known = _known(_later(curve))
    if known:
        scale: float | None = geometric_mean(point.noise_scale or 1 for point in known)
        interval = (min(point.interval[0] for point in known), max(point.interval[1] for point in known))
        return BatchSizes(scale, interval, configured, tuple(curve), tuple(warnings), "")
    low, high = last.squared_interval
    least = f" It is at least {last.interval[0]:,.0f} examples." if last.interval[0] >= 1 else ""
    problem = (
        f"the noise scale at step {last.step} cannot be told: the squared norm of the true gradient, "
        f"{last.squared_gradient:.2g}, has the interval {low:.2g} to {high:.2g}, which includes 0.{least} Measure "
        f"more batches: --batches={4 * last.batches}"
    )
    return BatchSizes(None, last.interval, configured, tuple(curve), tuple(warnings), problem)


def _later(curve: Sequence[NoiseScale]) -> Sequence[NoiseScale]:
    return curve[len(curve) // 2 :]


def _known(curve: Sequence[NoiseScale]) -> list[NoiseScale]:
    return [point for point in curve if point.noise_scale]
