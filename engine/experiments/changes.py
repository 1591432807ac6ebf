"""Finds the examples whose results changed most between two variants, and the figures that runs have drawn of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from engine.experiments.comparison import Change
from engine.experiments.joined import Joined
from engine.experiments.resampling import wide_fields
from engine.experiments.variants import Run
from engine.metrics.mean import Mean, RootMeanSquare
from engine.metrics.metric import Metric, array_fields
from engine.metrics.results import named_results, scalars
from engine.metrics.slices import SCORE, Examples

FIGURES = "figures"  # folder in a run directory: figures/EVALUATION/STEP/RANK-example-INDEX.png
LONGEST = 20_000  # most examples whose results are computed one by one


def changes(variant: int, joined: Joined, first: Sequence[Run], second: Sequence[Run], count: int) -> list[Change]:
    """Returns the examples that changed most, these first, by one number of the evaluation.

    That is `evaluations.NAME.score` of the base, "loss" without it, and else the first number that is a mean over
    examples. Without one, or if the metric has no result for single examples, there are none.

    Args:
        variant: index of the second variant in the comparison.
        joined: the metrics of the examples.
        first: the runs of the first variant.
        second: those of the second.
        count: most examples to return.
    """
    number = _score(joined, first[0])
    if not count or number is None:
        return []
    one, two = (np.mean([_each(run, *number) for run in side], axis=0) for side in joined.sides)
    with np.errstate(invalid="ignore"):
        size = np.abs(two - one)
    order = [int(row) for row in np.argsort(-size, kind="stable")[:count] if size[row] > 0]  # NaN is last
    examples = [joined.sides[0][0], joined.sides[1][0]]
    found = []
    for row in order:
        pictures = [
            _figure(run, joined.evaluation, int(each.indices[row]))
            for run, each in zip((first[0], second[0]), examples, strict=True)
        ]
        found.append(
            Change(
                variant=variant,
                evaluation=joined.evaluation,
                metric=number[1],
                index=int(joined.first.indices[row]),
                tags={name: values[row].item() for name, values in joined.first.tags.items()},
                first=float(one[row]),
                second=float(two[row]),
                figures=(pictures[0], pictures[1]),
            )
        )
    return found


def _score(joined: Joined, base: Run) -> tuple[str, str] | None:
    """Returns the metric and the full name of the number by which examples are ranked; None if there is none."""
    runs = [run for side in joined.sides for run in side]
    common = {name: x for name, x in joined.first.metrics.items() if all(name in run.metrics for run in runs)}
    wanted = base.record.config.get(f"evaluations.{joined.evaluation}.score")
    if isinstance(wanted, str):
        chosen = max((name for name in common if f"{wanted}/".startswith(f"{name}/")), key=len, default=None)
        if chosen is not None:
            return chosen, wanted
    if isinstance(common.get(SCORE), Mean):
        return SCORE, SCORE
    return next(((name, name) for name, x in common.items() if type(x) in (Mean, RootMeanSquare)), None)


def _each(examples: Examples, metric_name: str, number: str) -> np.ndarray:
    """Returns a number of each example by itself, float64 `[examples]`; NaN where an example has none."""
    metric = examples.metrics[metric_name]
    if type(metric) is Mean:
        total, weight = (np.asarray(x, np.float64) for x in (metric.total, metric.weight))
        return np.divide(total, weight, out=np.full(len(total), np.nan), where=weight != 0)
    rows = len(examples.indices)
    if rows > LONGEST and any(is_collected for _, is_collected in array_fields(metric)):
        return np.full(rows, math.nan)
    key, kind = number[len(metric_name) + 1 :], type(metric).__name__
    state: Metric = wide_fields(metric)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = [scalars(named_results(metric_name, x, f"{kind}.compute")) for x in state.compute_each(key)]
    return np.array([result.get(number, math.nan) for result in found])


def _figure(run: Run, evaluation: str, index: int) -> str:
    """Returns the path of the picture of an example that a run has drawn; "" if there is none."""
    file = run.files.get(evaluation)
    if file is None:
        return ""
    folder = run.folder / FIGURES / evaluation / file.stem
    return str(next(iter(sorted(cast(Path, folder).glob(f"*-example-{index}.png"))), ""))
