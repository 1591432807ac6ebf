"""Finds the examples that every run of two variants was evaluated on, by their keys or by their indices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from engine.experiments.resampling import rows_of
from engine.experiments.variants import Run
from engine.metrics.slices import KEY, Examples

type Read = Callable[[Path], Examples]


@dataclass(frozen=True)
class Joined:
    """The metrics of the same examples, in the same order, in every run of two variants.

    Attributes:
        evaluation: name of the evaluation.
        sides: the examples of each run of the first and of the second variant.
        notes: sentences about examples that are left out.
    """

    evaluation: str
    sides: tuple[Sequence[Examples], Sequence[Examples]]
    notes: Sequence[str] = ()

    @property
    def first(self) -> Examples:
        """The examples of the first run of the first variant."""
        return self.sides[0][0]

    def slice_rows(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each slice and its examples, as the first run that has it says."""
        runs = [run for side in self.sides for run in side]
        for name in dict.fromkeys(name for run in runs for name in run.slices):
            yield name, np.flatnonzero(next(run.slices[name] for run in runs if name in run.slices))

    def groups(self, tag: str) -> np.ndarray:
        """Returns the group of each example, numbered from 0: the values of a tag, or each example by itself."""
        if tag not in self.first.tags:
            return np.arange(len(self.first.indices))
        return np.unique(self.first.tags[tag], return_inverse=True)[1]

    def group_tags(self) -> dict[str, int]:
        """Returns the tags that several examples share, and the number of their values."""
        count = len(self.first.indices)
        found = {name: len(np.unique(values)) for name, values in self.first.tags.items() if name != KEY}
        return {name: values for name, values in found.items() if 1 < values < count}


def join(evaluation: str, first: Sequence[Run], second: Sequence[Run], read: Read) -> Joined | str:
    """Returns the examples that all runs of two variants have; or a sentence that says why there are none.

    Args:
        evaluation: name of the evaluation.
        first: the runs of the first variant.
        second: those of the second.
        read: reads a file of metrics of examples.
    """
    runs = [*first, *second]
    if missing := [run for run in runs if evaluation not in run.files]:
        flag = f"--evaluations.{evaluation}.per_example=True"
        return (
            f"{evaluation}: no interval over examples, since {missing[0].folder} kept no metrics of its examples. Add "
            f"them: convoy evaluate {missing[0].folder} {flag}"
        )
    found = [read(run.files[evaluation]) for run in runs]
    # The file knows it better: `convoy evaluate` may have read other data than those of the config.
    data = f"evaluations.{evaluation}.data"
    contents = [examples.content or run.data.get(data, "") for run, examples in zip(runs, found, strict=True)]
    keys = [examples.tags.get(KEY) for examples in found]
    known = [key for key in keys if key is not None and len(np.unique(key)) == len(key)]
    if len(known) == len(found):
        names, by = known, "key"
    elif len({*contents} - {""}) > 1:
        return (
            f"{evaluation}: the runs were evaluated on other examples, so no interval is given. Examples of datasets "
            f"that differ are found by a tag {KEY!r} that each run has, with another value for each example."
        )
    else:
        names, by = [examples.indices for examples in found], "index"
    rows = _shared_rows(names)
    if not len(rows[0]):
        return f"{evaluation}: the runs have no example in common by their {by}, so no interval is given."
    kept = [_some(examples, at) for examples, at in zip(found, rows, strict=True)]
    notes = [*_notes(evaluation, runs, found, kept[0], by), *_slice_notes(evaluation, runs, kept)]
    if by == "index" and "" in contents:
        unknown = runs[contents.index("")].folder
        notes.append(
            f"{evaluation}: it is not recorded which data {unknown} was evaluated on, so its examples are assumed to "
            f"be those of the other runs with the same index. convoy evaluate {unknown} records it."
        )
    return Joined(evaluation, (kept[: len(first)], kept[len(first) :]), notes)


def _shared_rows(names: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the rows of the names that are in every array, in the order of the first one."""
    shared = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), names)
    rows = [np.intersect1d(each, shared, assume_unique=True, return_indices=True)[1] for each in names]
    order = np.argsort(rows[0], kind="stable")
    return [at[order] for at in rows]


def _some(examples: Examples, at: np.ndarray) -> Examples:
    if len(at) == len(examples.indices) and (at == np.arange(len(at))).all():
        return examples
    return replace(
        examples,
        indices=examples.indices[at],
        slices={name: mask[at] for name, mask in examples.slices.items()},
        tags={name: values[at] for name, values in examples.tags.items()},
        metrics={name: rows_of(metric, at) for name, metric in examples.metrics.items()},
    )


def _slice_notes(evaluation: str, runs: Sequence[Run], kept: Sequence[Examples]) -> list[str]:
    """Returns a note on slices that do not have the same examples in each run."""
    names = dict.fromkeys(name for examples in kept for name in examples.slices)
    masks = {name: [each.slices[name] for each in kept if name in each.slices] for name in names}
    other = [name for name, found in masks.items() if any((mask != found[0]).any() for mask in found)]
    if not other:
        return []
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    first = next(run.folder for run, each in zip(runs, kept, strict=True) if other[0] in each.slices)
    return [f"{evaluation}: the slice {other[0]}{more} has other examples in some runs. Those in {first} count."]


def _notes(evaluation: str, runs: Sequence[Run], found: Sequence[Examples], kept: Examples, by: str) -> list[str]:
    count = len(kept.indices)
    return [
        f"{evaluation}: {len(examples.indices) - count:,} of the {len(examples.indices):,} examples of {run.folder} "
        f"are left out, since another run has none of the same {by}."
        for run, examples in zip(runs, found, strict=True)
        if len(examples.indices) > count
    ]
