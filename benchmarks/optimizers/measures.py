"""What the reports compute from rows: targets, steps and time to them, profiles, sensitivity and costs.

After AlgoPerf (Dahl et al. 2023, arXiv:2306.07179): a target is a value that a tuned baseline reaches, an optimizer is
scored by the steps and by the time until it reaches it, and a performance profile is the share of tasks on which an
optimizer is within a factor of the best one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.optimizers import rows, timing
from benchmarks.optimizers.chunks import TRIALS, chunk_name
from benchmarks.optimizers.rows import Row
from engine.experiments.statistics import Interval, t_interval

BASELINE = "adamw"
TARGET_AT = 0.95
"""Share of the steps at which the tuned baseline sets the target."""
LARGEST_RATIO = 4.0
"""End of the profiles, as in AlgoPerf."""
NEAR = 0.1
"""A learning rate is near the best if its loss is at most this share above the smallest one."""
STEPS, TIME = "steps", "time"


def final_rows(found: Sequence[Row], task: str, optimizer: str) -> list[Row]:
    """Returns the runs of the tuned point of an optimizer on a task."""
    return rows.finals(found, chunk_name(task, optimizer), TRIALS)


def tuning_rows(found: Sequence[Row], task: str, optimizer: str) -> list[Row]:
    """Returns the tuning runs of an optimizer on a task, by learning rate."""
    name = chunk_name(task, optimizer)
    tuned = [row for row in found if row.run.chunk == name and row.run.kind == "tune"]
    return sorted(tuned, key=lambda row: float(row.run.settings["learning_rate"]))


def compared(found: Sequence[Row], task: str) -> list[str]:
    """Returns the optimizers with tuned runs on a task, the baseline first."""
    names = dict.fromkeys(
        row.run.optimizer
        for row in found
        if row.run.task == task and row.run.group == TRIALS and row.run.kind == "final"
    )
    return sorted(names, key=lambda name: name != BASELINE)


def target(found: Sequence[Row], task: str) -> float:
    """Returns the loss that the tuned baseline reaches at `TARGET_AT` of its steps: the median over its seeds.

    NaN if there is no baseline.
    """
    values = [_best_until(row, TARGET_AT * row.run.steps) for row in final_rows(found, task, BASELINE)]
    return statistics.median_high(values) if values else math.nan


def _best_until(row: Row, step: float) -> float:
    """Returns the smallest loss up to a step, between two evaluations by a line."""
    inside = [loss for at, loss in zip(row.at, row.loss, strict=True) if at <= step]
    return min([*inside, float(np.interp(step, row.at, row.loss))])


def to_target(found: Sequence[Row], task: str, optimizer: str, unit: str = STEPS) -> float:
    """Returns the median over seeds of the steps, or of the CPU seconds, until the target; infinite if most fail."""
    goal, cost = target(found, task), 1.0
    values = [row.steps_to(goal) for row in final_rows(found, task, optimizer)]
    if unit == TIME:
        cost = step_ms(found, task, optimizer) / 1000
    return cost * statistics.median(values) if values else math.inf


def step_ms(found: Sequence[Row], task: str, optimizer: str) -> float:
    """Returns the CPU milliseconds of a step: those measured in turns, or else the smallest of the tuned runs."""
    in_turns = [row for row in found if (row.run.chunk, row.run.optimizer) == (timing.chunk_name(task), optimizer)]
    return min((row.step_ms for row in in_turns or final_rows(found, task, optimizer)), default=math.nan)


def final_loss(found: Sequence[Row], task: str, optimizer: str) -> Interval:
    """Returns the mean of the final losses over seeds, with its t interval."""
    return t_interval([row.final for row in final_rows(found, task, optimizer)])


def difference(found: Sequence[Row], task: str, optimizer: str) -> Interval:
    """Returns the mean over seeds of the final loss less that of the baseline with the same seed, with its t interval.

    Runs with equal seeds have equal weights at the start and the same order of the data.
    """
    base = {row.run.seed: row.final for row in final_rows(found, task, BASELINE)}
    runs = [row for row in final_rows(found, task, optimizer) if row.run.seed in base]
    return t_interval([row.final - base[row.run.seed] for row in runs])


def ratios(costs: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns optimizer -> cost over the smallest cost, for each task; infinite where the target was not reached.

    Args:
        costs: task -> optimizer -> steps or seconds to the target.
    """
    names = dict.fromkeys(name for each in costs.values() for name in each)
    found: dict[str, list[float]] = {name: [] for name in names}
    for each in costs.values():
        smallest = min(each.values())
        for name in names:
            cost = each.get(name, math.inf)
            found[name].append(cost / smallest if math.isfinite(cost) else math.inf)
    return found


def profile(of_tasks: Sequence[float], at: Sequence[float]) -> list[float]:
    """Returns the share of the tasks whose ratio is at most each value of `at`."""
    return [sum(ratio <= limit for ratio in of_tasks) / len(of_tasks) for limit in at]


def area(of_tasks: Sequence[float], largest: float = LARGEST_RATIO) -> float:
    """Returns the mean height of a profile between 1 and `largest`: 1 for the best optimizer on every task."""
    inside = (max(0.0, largest - ratio) for ratio in of_tasks if math.isfinite(ratio))
    return sum(inside) / ((largest - 1) * len(of_tasks))


def near_best(rates: Sequence[float], losses: Sequence[float], share: float = NEAR) -> float:
    """Returns the width of the range of learning rates near the best one, as a factor.

    The loss between two rates is a line over the logarithm of the rate. The range ends at the tested rates.

    Args:
        rates: learning rates, ascending.
        losses: the loss of each; infinite for a run that has diverged.
        share: see `NEAR`.
    """
    finite = [min(loss, 1e30) for loss in losses]
    place = int(np.argmin(finite))
    limit, logs = finite[place] + share * abs(finite[place]), np.log(rates)

    def end(direction: int) -> float:
        here = place
        while 0 <= here + direction < len(finite):
            following = here + direction
            if finite[following] > limit:
                part = (limit - finite[here]) / (finite[following] - finite[here])
                return float(logs[here] + part * (logs[following] - logs[here]))
            here = following
        return float(logs[here])

    return math.exp(end(1) - end(-1))


def critical_batch(batches: Sequence[float], steps: Sequence[float]) -> tuple[float, float]:
    """Returns the smallest number of steps S and the critical batch size C of steps = S (1 + C / batch).

    McCandlish et al. 2018, arXiv:1812.06162. The relative errors of the steps are minimized by least squares.
    """
    inverse, y = 1 / np.asarray(batches, np.float64), np.asarray(steps, np.float64)
    columns = np.stack([np.ones_like(inverse), inverse], axis=1) / y[:, None]
    (least, slope), *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
    return float(least), float(slope / least)
