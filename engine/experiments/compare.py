"""Compares two runs: what differs in their settings, code and data, and how sure the differences of their results are.

Results are compared in pairs where both runs kept the metrics of the same examples (`evaluations.NAME.per_example`): a
bootstrap over examples gives the interval of a difference. Any metric is compared so, since each resample merges the
states of its examples (`resampling.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.base import json_text
from engine.base.errors import RunError
from engine.experiments import statistics
from engine.experiments.record import RunRecord, read_record
from engine.experiments.resampling import resampled
from engine.experiments.run_table import differing_settings
from engine.experiments.statistics import Interval
from engine.metrics.example_file import FOLDER, read_parquet
from engine.metrics.metric import Metric, array_fields
from engine.metrics.slices import Examples
from engine.run import code

RESAMPLES = 2000
WHOLE = ""
"""Name of the part that has all examples."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number of an evaluation, in both runs.

    Attributes:
        evaluation: name of the evaluation.
        part: a slice, or WHOLE.
        metric: name of the number, such as "ap/car".
        examples: number of examples; 0 if the runs have no metrics of the same examples.
        first: the value of the first run.
        second: that of the second.
        interval: second - first; its limits are NaN where examples are too few or not known.
        adjusted_p: the p-value after the correction for the number of slices (Holm); NaN for all examples.
    """

    evaluation: str
    part: str
    metric: str
    examples: int
    first: float
    second: float
    interval: Interval
    adjusted_p: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        runs: their records.
        settings: setting -> its value in each run, where they differ.
        code: package, "commit" or "uncommitted changes" -> its value in each run, where they differ.
        data: dataset -> the fingerprint of its content in each run, where they differ.
        results: every number that both runs have; slices are ordered by how sure their difference is.
        notes: sentences about what could not be compared.
    """

    runs: tuple[RunRecord, RunRecord]
    settings: Mapping[str, tuple[Any, Any]]
    code: Mapping[str, tuple[Any, Any]]
    data: Mapping[str, tuple[str, str]]
    results: Sequence[Difference]
    notes: Sequence[str]


def compare(
    first: Path, second: Path, resamples: int = RESAMPLES, on_progress: Callable[[int, int], None] = lambda a, b: None
) -> Comparison:
    """Compares two run directories.

    Args:
        first: the run that is compared with.
        second: the run whose differences are shown.
        resamples: number of resamples of the bootstrap.
        on_progress: called with the number of finished parts of evaluations, and of all.

    Raises:
        RunError: a directory is no run, or a file of metrics of examples is damaged.
        ConfigError: pyarrow is missing.
    """
    folders = (first, second)
    records = (_record(first), _record(second))
    contents = [_contents(folder) for folder in folders]
    stored = [_stored(folder, record) for folder, record in zip(folders, records, strict=True)]
    notes, results, work = [], [], []
    for name in sorted({name.partition("/")[0] for record in records for name in record.metrics if "/" in name}):
        problem = _why_not_paired(name, contents, stored)
        if problem:
            notes.append(problem)
            results += _unpaired(name, records)
        else:
            work.append((name, [read_parquet(files[name]) for files in stored]))
    total, done = sum(1 + len(found[0].slices) for _, found in work), 0
    for name, (one, two) in work:
        for part in (WHOLE, *one.slices):
            if part == WHOLE or part in two.slices:
                results += _paired(name, part, one, two, resamples)
            done += 1
            on_progress(done, total)
    return Comparison(
        records,
        {n: (records[0].config.get(n), records[1].config.get(n)) for n in differing_settings(records)},
        _differences(*map(_code, folders)),
        _differences(*contents),
        _corrected(results),
        notes,
    )


def _record(folder: Path) -> RunRecord:
    record = read_record(folder, str(folder))
    if not record.config:
        raise RunError(f"{folder}: no run that can be read. {record.problem}".rstrip())
    return record


def _contents(folder: Path) -> dict[str, str]:
    """Returns dataset -> fingerprint of its content; empty if the run has stored none that can be read."""
    try:
        stored = json_text.read(folder / "data.json", {str: {"content?": str}})
    except (OSError, ValueError):
        return {}
    return {name: found["content"] for name, found in stored.items() if "content" in found}


def _stored(folder: Path, record: RunRecord) -> dict[str, Path]:
    """Returns evaluation -> its file of metrics of examples: of the best checkpoint, or else the newest."""
    found = {}
    for below in sorted((folder / FOLDER).glob("*")):
        files = {int(file.stem): file for file in below.glob("*.parquet") if file.stem.isdecimal()}
        if files:
            found[below.name] = files.get(-1 if record.best is None else record.best) or files[max(files)]
    return found


def _why_not_paired(name: str, contents: Sequence[Mapping[str, str]], stored: Sequence[Mapping[str, Path]]) -> str:
    """Returns why the results of an evaluation have no interval; "" if they have one."""
    data = f"evaluations.{name}.data"
    found = [content.get(data) for content in contents]
    if None not in found and found[0] != found[1]:
        return f"{name}: the runs were evaluated on other examples, so no interval is given."
    if not all(name in files for files in stored):
        flag = f"--evaluations.{name}.per_example=True"
        return f"{name}: no interval, since a run kept no metrics of its examples. Add them: convoy evaluate RUN {flag}"
    return ""


def _unpaired(name: str, records: Sequence[RunRecord]) -> list[Difference]:
    one, two = (record.metrics for record in records)
    return [
        Difference(name, WHOLE, full.partition("/")[2], 0, one[full], two[full], _only(two[full] - one[full]))
        for full in one
        if full.startswith(f"{name}/") and full in two
    ]


def _only(estimate: float) -> Interval:
    return statistics.NO_INTERVAL._replace(estimate=estimate)


def _paired(name: str, part: str, one: Examples, two: Examples, resamples: int) -> list[Difference]:
    """Returns the differences of all numbers of an evaluation, over all examples or those of a slice."""
    rows = _shared_rows(part, one, two)
    count, found = len(rows[0]), []
    for metric in one.metrics:
        if metric not in two.metrics or not count:
            continue
        chosen = [_rows(examples.metrics[metric], at) for examples, at in zip((one, two), rows, strict=True)]
        whole = np.ones((1, count), np.int64)
        first, second = (next(iter(resampled(metric, state, whole))) for state in chosen)
        draws: dict[str, list[float]] = {number: [] for number in first if number in second}
        for counts in statistics.group_counts(count, resamples if count >= statistics.FEWEST_GROUPS else 0, seed=0):
            for a, b in zip(*(resampled(metric, state, counts) for state in chosen), strict=True):
                for number, values in draws.items():
                    values.append(b.get(number, np.nan) - a.get(number, np.nan))
        for number, values in draws.items():
            interval = statistics.bootstrap_interval(second[number] - first[number], np.array(values), count)
            found.append(Difference(name, part, number, count, first[number], second[number], interval))
    return found


def _shared_rows(part: str, one: Examples, two: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the examples that both runs have, and that belong to a slice in the first one."""
    _, first, second = np.intersect1d(one.indices, two.indices, assume_unique=True, return_indices=True)
    chosen = one.slices[part][first] if part else np.ones(len(first), bool)
    return first[chosen], second[chosen]


def _rows[M: Metric](metric: M, at: np.ndarray) -> M:
    state: Any = metric
    fields = {name: np.asarray(getattr(metric, name))[at] for name, _ in array_fields(metric)}
    return dataclasses.replace(state, **fields)


def _code(folder: Path) -> dict[str, Any]:
    found = code.read(folder / "code.json")
    return {"commit": found.commit[:12], "uncommitted changes": found.dirty, **found.packages}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns name -> both values, where they differ."""
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _corrected(results: Sequence[Difference]) -> list[Difference]:
    """Returns the results with p-values of slices that are corrected for their number, the surest slices first."""
    found = [result for result in results if result.part == WHOLE]
    slices = [result for result in results if result.part != WHOLE]
    for key in dict.fromkeys((result.evaluation, result.metric) for result in slices):
        same = [result for result in slices if (result.evaluation, result.metric) == key]
        adjusted = statistics.holm([result.interval.p for result in same])
        ranked = [dataclasses.replace(result, adjusted_p=p) for result, p in zip(same, adjusted, strict=True)]
        found += sorted(ranked, key=lambda result: (np.isnan(result.interval.p), result.interval.p))
    return found
