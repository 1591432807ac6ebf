"""Which checkpoints stay: the newest, and the best by a metric.

Owns: the choice, and `results.json` beside the step directories, where evaluation results are kept by step. Does not
own: removing files (`store.py`), or when the choice is made (after a newer step is durable, `checkpointer.py`).

Terms. *Result*: the values of the evaluations of one step, {"heldout/accuracy": 0.97}. *Best*: the highest value of
one of them (mode "max") or the lowest ("min"); of equal values the earlier step is the better one.
"""

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from engine.cluster import group, processes
from engine.config.errors import CheckpointError
from engine.run import json_text, storage
from engine.run.atomic import cannot_write, write_text

RESULTS = "results.json"
_WRITE_S = 2.0  # that the loop waits for a disk to take the results

Results = Mapping[int, Mapping[str, float]]


def to_delete(
    steps: Collection[int], results: Results, *, keep_latest: int, best: str | None, best_mode: str, keep_best: int
) -> list[int]:
    """Returns the steps that need not stay, oldest first.

    Args:
        steps: the durable steps.
        results: evaluation results by step; steps that are not durable count for nothing.
        keep_latest: how many of the newest stay; the newest always does.
        best: name of a result, or None.
        best_mode: "max" or "min".
        keep_best: how many of the best stay besides.
    """
    kept = set(sorted(steps)[-max(1, keep_latest) :])
    if best is not None:
        kept |= set(ranking({step: results[step] for step in steps if step in results}, best, best_mode)[:keep_best])
    return sorted(set(steps) - kept)


def ranking(results: Results, best: str, best_mode: str) -> list[int]:
    """Returns the steps that have a finite value of `best`, the best first."""
    sign = -1 if best_mode == "max" else 1
    values = {step: values[best] for step, values in results.items() if math.isfinite(values.get(best, math.nan))}
    return sorted(values, key=lambda step: (sign * values[step], step))


class Retention:
    """The choice for one run, with the results that it rests on.

    Args:
        directory: of the checkpoints.
        keep_latest: newest checkpoints that stay.
        best: "evaluation/metric", or None.
        best_mode: "max" or "min".
        keep_best: best checkpoints that stay.

    Every process of a run makes one, records and chooses the same; the first one reads and writes.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep_latest: int,
        best: str | None = None,
        best_mode: str = "max",
        keep_best: int = 1,
    ):
        self._directory = Path(directory)
        self._keep_latest, self._best, self._best_mode, self._keep_best = keep_latest, best, best_mode, keep_best
        # As pairs: JSON, by which processes agree, has no numbers for keys.
        pairs = list(read_results(self._directory).items()) if processes.is_primary() else []
        self._results = dict(group.broadcast(pairs, "the results of the evaluations"))
        self._writing: storage.Background | None = None  # the newest file, as far as it is not known to be written

    def record(self, step: int, results: Mapping[str, float]) -> None:
        """Adds evaluation results of a step, also on disk.

        Raises:
            RunError: they cannot be written, or the disk does not answer in two seconds. They go there with the next
                ones, or by `flush`.
        """
        self._results[step] = self._results.get(step, {}) | {name: float(value) for name, value in results.items()}
        if self._writing is None or self._writing.done:  # else the disk hangs, which was told
            self._write()

    def flush(self) -> None:
        """Writes what a disk in trouble has not taken; raises as `record`."""
        if self._writing is not None and self._writing.done:
            self._write()

    def _write(self) -> None:
        if not processes.is_primary():
            return
        path = self._directory / RESULTS
        text = json_text.dumps({step: self._results[step] for step in sorted(self._results)}, indent=1)

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            write_text(path, text + "\n")

        self._writing = storage.Background(write, "results")
        try:
            self._writing.result(_WRITE_S)
        except storage.StorageTimeout as error:
            raise cannot_write(path, error) from error
        self._writing = None

    def to_delete(self, steps: Collection[int]) -> list[int]:
        """Returns those of the durable steps that need not stay, oldest first."""
        return to_delete(
            steps,
            self._results,
            keep_latest=self._keep_latest,
            best=self._best,
            best_mode=self._best_mode,
            keep_best=self._keep_best,
        )

    def forget(self, evaluation: str) -> None:
        """Drops the results of an evaluation whose data changed: old and new values cannot be compared."""
        for step, results in list(self._results.items()):
            self._results[step] = {n: v for n, v in results.items() if n.partition("/")[0] != evaluation}
            self.record(step, {})

    def results(self, step: int) -> Mapping[str, float]:
        """Returns the evaluation results of a step, none if nothing was recorded."""
        return self._results.get(step, {})

    def best(self) -> tuple[int, float] | None:
        """Returns (step, value) of the best result so far, or None."""
        order = ranking(self._results, self._best, self._best_mode) if self._best else []
        return (order[0], self._results[order[0]][self._best]) if self._best and order else None


def read_results(directory: Path) -> dict[int, dict[str, float]]:
    """Returns the evaluation results by step; none if nothing was recorded.

    Raises:
        CheckpointError: the file is not what `record` writes.
    """
    path = directory / RESULTS
    try:
        stored = json.loads(path.read_text())
        return {int(step): {name: float(value) for name, value in values.items()} for step, values in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}). Move it away to go on; the best checkpoint is then chosen anew."
        ) from error
