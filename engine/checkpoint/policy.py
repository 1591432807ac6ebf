"""Policies that decide when a step is saved (`SavePolicy`) and which steps are kept (`Retention`).

Retention keeps the newest and the best steps. Evaluation results are stored in `results.json` in the directory of the
checkpoints: {"500": {"heldout/accuracy": 0.97}}. Of equal values, the earlier step ranks first.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from engine.base import json_text
from engine.base.duration import Duration, Period
from engine.base.errors import CheckpointError
from engine.checkpoint import timeouts
from engine.cluster import group
from engine.run.atomic import cannot_write
from engine.run.lease import ALWAYS_GRANTED, Lease
from engine.storage import background

RESULTS = "results.json"

type Results = Mapping[int, Mapping[str, float]]
"""Evaluation results by step."""


class SavePolicy:
    """Decides which steps are saved: by steps, examples, epochs or the clock.

    The loop adds saves for other reasons (a preemption, a best evaluation).

    Args:
        duration: between two saves; None saves the last step only.
        batch_size: examples per step.
        dataset_size: examples per epoch.
        total_steps: the last step, which is always due.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        duration: Duration | None,
        batch_size: int,
        dataset_size: int,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps = total_steps
        self._period = self._timer = None
        if duration is not None and duration.is_clock:
            self._timer = _AgreedTimer(duration.seconds, clock)
        else:
            self._period = Period(duration, batch_size, dataset_size, total_steps)

    def due(self, step: int) -> bool:
        """Whether to save at this step; never at step 0, always at the last step.

        Every process must call it at the same, increasing steps, since it may communicate. Steps before `next_step` may
        be omitted.
        """
        if self._timer is not None:
            return self._timer.due(step) or 0 < step == self._total_steps
        assert self._period is not None
        return self._period.due(step)

    @property
    def is_clock(self) -> bool:
        """Whether saves depend on a clock."""
        return self._timer is not None

    def next_step(self, after: int) -> int:
        """Returns the first step > `after` at which `due` must be called; earlier steps are not due."""
        if self._timer is not None:
            return min(self._total_steps, self._timer.next_agreement(after))
        assert self._period is not None
        return self._period.next_after(after)


class _AgreedTimer:
    """A timer of the primary. All processes share its answers, because the clocks of hosts differ.

    Each agreement (a broadcast) also sets the step of the next agreement: halfway to the expected time of the save, and
    at most three times as many steps ahead as the attempt has done. This makes about ten agreements per save.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]):
        self._seconds, self._clock = seconds, clock
        self._start = clock()  # when it was last due
        self._first = 0  # first step of this attempt
        self._agree_at: int | None = None  # step of the next agreement
        self._asked: int | None = None  # step of the last call of `due`
        self._answer = False  # result of that call
        self._last = (0, self._start)  # step and time of the last agreement

    def due(self, step: int) -> bool:
        if step == self._asked:
            return self._answer
        if self._agree_at is None:  # the first step of this attempt: there are no updates to save
            self._first, self._agree_at, self._last = step, step + 1, (step, self._clock())
        self._asked, self._answer = step, False
        if step >= self._agree_at:
            self._answer, self._agree_at = group.broadcast(self._decide(step), "the timer of saves")
        return self._answer

    def next_agreement(self, step: int) -> int:
        return step + 1 if self._agree_at is None else max(step + 1, self._agree_at)

    def _decide(self, step: int) -> tuple[bool, int]:
        """Returns (whether a save is due now, the step of the next agreement) by the clock of this process."""
        now = self._clock()
        before, then = self._last
        self._last = (step, now)
        due = now - self._start >= self._seconds
        if due:
            self._start = now
        expected = (self._start + self._seconds - now) * (step - before) / max(now - then, 1e-6)
        # Limited by the steps of this attempt: the loop runs ahead of the device, so its first steps are bad estimates.
        return due, step + max(1, min(int(expected / 2), 3 * (step - self._first)))


class Retention:
    """Decides which steps of a run are kept, from the evaluation results, which it also stores.

    Args:
        directory: directory of the checkpoints.
        keep_latest: number of newest checkpoints to keep.
        best: "evaluation/metric", or None.
        best_mode: "auto", "max" or "min".
        keep_best: number of best checkpoints to keep in addition.
        lease: lease of the run directory.

    Every process of a run has a Retention, with the same records and decisions. The primary reads and writes the file.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_latest: int,
        best: str | None = None,
        best_mode: str = "max",
        keep_best: int = 1,
        lease: Lease = ALWAYS_GRANTED,
    ):
        self._path, self._lease = Path(directory) / RESULTS, lease
        self._keep_latest, self._best, self._best_mode, self._keep_best = keep_latest, best, best_mode, keep_best
        # As pairs, because JSON has no integer keys.
        pairs = group.run_on_primary(lambda: list(read_results(Path(directory)).items()), "the evaluation results")
        self._results: dict[int, dict[str, float]] = {int(step): results for step, results in pairs}
        self._writing: background.Background | None = None  # the latest write, unless it has succeeded

    def record(self, step: int, results: Mapping[str, float]) -> None:
        """Adds evaluation results of a step, in memory and on disk.

        Raises:
            RunError: the file cannot be written, or the disk does not answer within `timeouts.RESULTS_S`. The next call
                or `flush` writes the results.
        """
        self._results[step] = self._results.get(step, {}) | {name: float(value) for name, value in results.items()}
        if self._writing is None or self._writing.done:  # otherwise the disk hangs, which is already reported
            self._write_results()

    def flush(self) -> None:
        """Writes results that could not be written before. Raises like `record`."""
        if self._writing is not None and self._writing.done:
            self._write_results()

    def _write_results(self) -> None:
        if not group.is_primary():
            return
        text = json_text.dumps({step: self._results[step] for step in sorted(self._results)}, indent=1)

        def write() -> None:
            self._path.parent.mkdir(exist_ok=True)
            self._lease.replace_text(self._path, text + "\n")

        self._writing = background.Background(write, "results")
        try:
            self._writing.result(timeouts.RESULTS_S)
        except background.StorageTimeout as error:
            raise cannot_write(self._path, error) from error
        self._writing = None

    def to_delete(self, steps: Collection[int]) -> list[int]:
        """Returns the steps to delete out of the durable steps, oldest first. The newest step is always kept."""
        kept = set(sorted(steps)[-max(1, self._keep_latest) :])
        ranked = self._ranked_steps({step: self._results[step] for step in steps if step in self._results})
        return sorted(set(steps) - kept - set(ranked[: self._keep_best]))

    def forget(self, evaluation: str) -> None:
        """Drops the results of an evaluation whose data has changed: old and new values are not comparable."""
        for step, results in list(self._results.items()):
            self._results[step] = {n: v for n, v in results.items() if n.partition("/")[0] != evaluation}
            self.record(step, {})

    def results(self, step: int) -> Mapping[str, float]:
        """Returns the evaluation results of a step; empty if none were recorded."""
        return self._results.get(step, {})

    def history(self, metric: str, until: int) -> dict[int, float]:
        """Returns step -> value of a metric at the steps up to `until`."""
        return {step: results[metric] for step, results in self._results.items() if step <= until and metric in results}

    def best(self) -> tuple[int, float] | None:
        """Returns (step, value) of the best result so far, or None."""
        return best_of(self._results, self._best, self._best_mode)

    def _ranked_steps(self, results: Results) -> list[int]:
        return ranking(results, self._best, self._best_mode) if self._best else []


def ranking(results: Results, best: str, best_mode: str) -> list[int]:
    """Returns the steps that have a finite value of `best`, the best first; `best_mode` is auto, max or min."""
    from engine.metrics.direction import mode_of  # a run without `checkpoint.best` does not need it

    best_mode = mode_of(best_mode, best)
    sign = -1 if best_mode == "max" else 1
    values = {step: values[best] for step, values in results.items() if math.isfinite(values.get(best, math.nan))}
    return sorted(values, key=lambda step: (sign * values[step], step))


def best_of(results: Results, best: str | None, best_mode: str) -> tuple[int, float] | None:
    """Returns (step, value) of the best result; None without one. Step 0 does not count: it is never saved."""
    ranked = ranking({step: values for step, values in results.items() if step > 0}, best, best_mode) if best else []
    return (ranked[0], results[ranked[0]][best]) if best and ranked else None


def read_results(directory: Path) -> dict[int, dict[str, float]]:
    """Returns the evaluation results by step; empty if none were recorded.

    Raises:
        CheckpointError: the file cannot be read or parsed.
    """
    path = directory / RESULTS
    try:
        stored = json_text.read(path, {str: {str: float}}, constants=True)
        return {int(step): values for step, values in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({json_text.reason(error)}). Move it away to continue; the best checkpoint is "
            "then chosen from new results only."
        ) from error
