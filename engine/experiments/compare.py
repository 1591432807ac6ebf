"""Compares runs: what differs in settings, code, data and environment, and how sure the differences of results are.

Each variant is compared with the first one: over seeds where both have several (`seeds.py`), and else over the examples
that both were evaluated on (`pairs.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.base.errors import ConfigError
from engine.experiments import statistics
from engine.experiments.changes import changes
from engine.experiments.comparison import WHOLE, Basis, Comparison, Difference, Variant
from engine.experiments.joined import Joined, join
from engine.experiments.pairs import Paired
from engine.experiments.seeds import has_seeds, seed_interval, seed_notes
from engine.experiments.statistics import FEWEST_GROUPS
from engine.experiments.variants import Run, describe, differences, variants_of
from engine.metrics.direction import higher_is_better
from engine.metrics.example_file import read_parquet
from engine.metrics.slices import COUNT

RESAMPLES = 1000
EXAMPLES = 10
_SHOWN = 8  # names of a note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How runs are compared.

    Attributes:
        group: tag whose values are resampled, such as "scene"; "" resamples single examples.
        resamples: resamples of the bootstrap in each part of an evaluation; up to 16 times as many where it is close.
        examples: number of examples that changed most to list, for each evaluation.
        on_progress: called with the number of finished parts of evaluations, and of all.
    """

    group: str = ""
    resamples: int = RESAMPLES
    examples: int = EXAMPLES
    on_progress: Callable[[int, int], None] = lambda done, total: None


@dataclasses.dataclass(frozen=True)
class _Work:
    """One evaluation of the base and another variant."""

    variant: int
    evaluation: str
    joined: Joined | None


def compare(folders: Sequence[Path], options: Options = Options()) -> Comparison:
    """Compares run directories; the first one is the base, with the other runs of its settings.

    Raises:
        RunError: a directory is no run, or a file of metrics of examples is damaged.
        ConfigError: pyarrow is missing, there are fewer than two runs, or no evaluation has the tag `group`.
    """
    if len(folders) < 2:
        raise ConfigError("compare: found one run. Give two or more.")
    grouped, notes = variants_of([Run.read(folder) for folder in folders])
    variants = [describe(group) for group in grouped]
    read = functools.lru_cache(maxsize=None)(read_parquet)
    work: list[_Work] = []
    for number, group in enumerate(grouped[1:], start=1):
        for name in _evaluations([*grouped[0], *group]):
            found = join(name, grouped[0], group, read)
            if isinstance(found, str):
                if not has_seeds(variants[0], variants[number]):
                    notes.append(found)
                work.append(_Work(number, name, None))
            else:
                notes += found.notes
                work.append(_Work(number, name, found))
    over_examples = [item for item in work if not has_seeds(variants[0], variants[item.variant])]
    notes += _group_notes(options.group, work, {item.evaluation for item in over_examples})
    notes += seed_notes(variants[0], variants[1:])
    results: list[Difference] = []
    changed = []
    paired = {at: Paired(x.variant, x.joined, options.group) for at, x in enumerate(work) if x.joined is not None}
    if any(part.groups < FEWEST_GROUPS for at in paired if work[at] in over_examples for part in paired[at].parts):
        what = f"groups of equal {options.group}" if options.group else "examples"
        notes.append(f"too few: an interval needs at least {FEWEST_GROUPS} {what}.")
    total, done = sum(len(x.parts) for x in paired.values()), 0

    def advance() -> None:
        nonlocal done
        done += 1
        options.on_progress(done, total)

    for at, item in enumerate(work):
        base, other = variants[0], variants[item.variant]
        pairs = paired.pop(at, None)  # frees the arrays of each one when it is done
        if has_seeds(base, other):
            results += _over_seeds(item, base, other, pairs)
        elif pairs is not None:
            results += pairs.differences(options.resamples, advance)
        else:
            results += _without_interval(item, base, other)
        if item.joined is not None:
            changed += changes(item.variant, item.joined, grouped[0], grouped[item.variant], options.examples)
    notes += _lone_results(grouped, {(result.variant, result.name) for result in results})
    return Comparison(
        variants=variants,
        **differences(grouped),
        group=options.group,
        results=_corrected(results),
        changes=changed,
        notes=list(dict.fromkeys(notes)),
    )


def _evaluations(runs: Sequence[Run]) -> list[str]:
    """Returns the evaluations that any of the runs has results or metrics of examples of."""
    names = {name.partition("/")[0] for run in runs for name in run.record.metrics if "/" in name}
    return sorted(names | {name for run in runs for name in run.files})


def _lone_results(variants: Sequence[Sequence[Run]], compared: set[tuple[int, str]]) -> list[str]:
    """Returns notes on results that cannot be compared, since a run of one of two variants has none of the name."""
    notes, (base, *others) = [], variants
    for number, other in enumerate(others, start=1):
        names = [{name for name in run.record.metrics if "/" in name} for run in (*base, *other)]
        lone = sorted(set.union(*names) - set.intersection(*names))
        if lone := [name for name in lone if (number, name) not in compared]:
            more = f" and {len(lone) - _SHOWN} more" if len(lone) > _SHOWN else ""
            notes.append(
                f"{base[0].folder} and {other[0].folder}: not compared, since a run has no finite value of it: "
                f"{', '.join(lone[:_SHOWN])}{more}."
            )
    return notes


def _group_notes(group: str, work: Sequence[_Work], over_examples: Collection[str]) -> list[str]:
    """Returns notes on groups of examples, for the evaluations whose intervals are over examples.

    Raises ConfigError if no evaluation has the tag `group`.
    """
    joined = {item.evaluation: item.joined for item in work if item.joined is not None}
    notes = []
    if group and not any(group in x.first.tags for x in joined.values()):
        tags = ", ".join(dict.fromkeys(name for x in joined.values() for name in x.first.tags))
        found = f"The tags are {tags}." if tags else "No run has metrics of examples with tags."
        raise ConfigError(f"--group={group}: no evaluation has this tag. {found}")
    if group and not over_examples:
        notes.append(f"--group={group} changes nothing here: all intervals are over seeds.")
    for name, found in ((name, found) for name, found in joined.items() if name in over_examples):
        if group and group not in found.first.tags:
            notes.append(f"{name}: the examples have no tag {group}, so they are resampled one by one.")
        elif not group and (tags := found.group_tags()):
            enough = {tag: count for tag, count in tags.items() if count >= FEWEST_GROUPS}
            tag, count = min(enough.items(), key=_count) if enough else max(tags.items(), key=_count)
            advice = f"--group={tag} resamples its values" if enough else f"{count} groups are too few for others"
            notes.append(
                f"{name}: the {len(found.first.indices):,} examples have {count:,} values of the tag {tag}. If "
                f"examples of one {tag} are not independent, intervals are too narrow: {advice}. "
                f"Tags with groups: {', '.join(f'{tag} ({count:,})' for tag, count in tags.items())}."
            )
    return notes


def _count(item: tuple[str, int]) -> int:
    return item[1]


def _over_seeds(item: _Work, base: Variant, other: Variant, pairs: Paired | None) -> Iterator[Difference]:
    """Yields the differences of two variants with several seeds, over the same examples if these are known."""
    for part, examples, number, better, first, second in pairs.values() if pairs else _stored(item, base, other):
        basis, interval = seed_interval(base, other, first, second)
        yield Difference(
            variant=item.variant,
            evaluation=item.evaluation,
            part=part,
            metric=number,
            examples=examples,
            first=float(np.mean(first)),
            second=float(np.mean(second)),
            first_values=first,
            second_values=second,
            higher_is_better=better,
            basis=basis,
            interval=interval,
        )


def _without_interval(item: _Work, base: Variant, other: Variant) -> Iterator[Difference]:
    for difference in _over_seeds(item, base, other, None):
        interval = statistics.NO_INTERVAL._replace(estimate=difference.second - difference.first)
        yield dataclasses.replace(difference, basis=Basis.NONE, interval=interval)


def _stored(
    item: _Work, base: Variant, other: Variant
) -> Iterator[tuple[str, int, str, bool | None, list[float], list[float]]]:
    """Yields what `Paired.values` yields, from the results of the runs."""
    metrics = [[_named(item.evaluation, run.metrics) for run in variant.runs] for variant in (base, other)]
    everywhere = [run for side in metrics for run in side]
    for part, number in everywhere[0]:
        if number != COUNT and all((part, number) in run for run in everywhere):
            first, second = ([run[part, number] for run in side] for side in metrics)
            counts = {run.get((part, COUNT), 0.0) for run in everywhere} if part else {0.0}
            examples = int(counts.pop()) if len(counts) == 1 else 0
            yield part, examples, number, higher_is_better(number), first, second


def _named(evaluation: str, metrics: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Returns (part, number) -> value of an evaluation; a slice is known by the number of its examples."""
    own = {name.partition("/")[2]: x for name, x in metrics.items() if name.startswith(f"{evaluation}/")}
    slices = [name.removesuffix(f"/{COUNT}") for name in own if name.endswith(f"/{COUNT}")]
    found = {}
    for name, value in own.items():
        part = max((x for x in slices if name.startswith(f"{x}/")), key=len, default=WHOLE)
        found[part, name[len(part) + 1 :] if part else name] = value
    return found


def _corrected(results: Sequence[Difference]) -> list[Difference]:
    """Returns the results with p-values of slices that are corrected for their number, the surest slices first.

    The results of a variant are next to each other, first those over all examples.
    """
    found = []
    for variant in dict.fromkeys(result.variant for result in results):
        own = [result for result in results if result.variant == variant]
        found += [result for result in own if result.part == WHOLE]
        slices = [result for result in own if result.part != WHOLE]
        for key in dict.fromkeys((result.evaluation, result.metric) for result in slices):
            same = [result for result in slices if (result.evaluation, result.metric) == key]
            adjusted = statistics.holm([result.interval.p for result in same])
            ranked = [dataclasses.replace(result, adjusted_p=p) for result, p in zip(same, adjusted, strict=True)]
            found += sorted(ranked, key=lambda result: (np.isnan(result.interval.p), result.interval.p))
    return found
