"""The report of `convoy data check`: what was found in a dataset, as text and as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.base import formatting
from engine.data.source import BaseSource, source_name
from engine.data.stages import STAGES
from engine.datasets.advice import advice, notes
from engine.datasets.statistics import BadExample, FieldStatistics, Statistics, histogram, quantiles

BINS, BAR = 8, 30  # a histogram's bins, and characters of its longest bar
MOST_SHAPES, MOST_CLASSES = 5, 20  # shapes and classes of a field that are listed
SHOWN_BAD = 20  # bad examples in the text; the JSON names more


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found."""

    source: str
    """Name of the source."""
    examples: int
    bad: list[BadExample]
    """The bad examples, at most 10,000."""
    bad_count: int
    files: int
    """Files that were compared with a checksum."""
    damaged: list[str]
    """Files that differ from their checksum."""
    bytes: dict[str, Any]
    """Sizes of the examples in bytes: total, min, median, max, and a histogram of (lowest, highest, examples)."""
    fields: dict[str, dict[str, Any]]
    """Path -> dtype, shapes, range, lengths, classes and more of a leaf of the examples."""
    duplicates: dict[str, Any]
    """`examples` that equal an earlier one, and the first `pairs` of indices."""
    notes: list[str]
    """What training would run into."""
    throughput: dict[str, Any]
    """Seconds, processes, examples per second, and by stage the seconds of an example; these differ between runs."""
    advice: list[str]
    """What would make reading faster."""

    @property
    def faults(self) -> int:
        """Number of bad examples and damaged files."""
        return self.bad_count + len(self.damaged)

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    def to_text(self) -> str:
        """Returns the report as text for a terminal."""
        return "\n".join(_lines(self))


def make_report(
    source: BaseSource, found: Statistics, files: int, damaged: list[str], seconds: float, processes: int
) -> DatasetReport:
    """Returns the report of the statistics of a whole dataset."""
    count, pairs = found.duplicates()
    throughput = _throughput(found, seconds, processes)
    return DatasetReport(
        source=source_name(source),
        examples=len(source),
        bad=found.bad,
        bad_count=found.bad_count,
        files=files,
        damaged=damaged,
        bytes=_distribution(found.sizes) if found.sizes else {},
        fields={path: _field(field) for path, field in found.fields.items()},
        duplicates={"examples": count, "pairs": [list(pair) for pair in pairs]},
        notes=notes(source, found),
        throughput=throughput,
        advice=advice(found, throughput),
    )


def _distribution(counts: Counter[int]) -> dict[str, Any]:
    low, median, high = quantiles(counts, (0, 0.5, 1))
    total = sum(value * count for value, count in counts.items())
    bins = [list(one) for one in histogram(counts, BINS)] if low != high else []
    return {"total": total, "min": low, "median": median, "max": high, "histogram": bins}


def _field(found: FieldStatistics) -> dict[str, Any]:
    shapes = sorted(found.shapes.items(), key=lambda item: (-item[1], item[0]))
    entry: dict[str, Any] = {
        "dtype": found.dtype,
        "examples": found.examples,
        "shapes": [[list(shape), count] for shape, count in shapes[:MOST_SHAPES]],
        "different_shapes": len(shapes),
        "min": found.minimum,
        "max": found.maximum,
        "constant": found.is_constant(),
    }
    if (lengths := found.lengths()) is not None:
        entry["lengths"] = _distribution(lengths)
    if (classes := found.labels()) is not None:
        entry["classes"] = {str(value): classes[value] for value in sorted(classes)}
    if found.not_finite:
        entry["not_finite"] = {"examples": found.not_finite, "first": found.first_not_finite}
    return entry


def _throughput(found: Statistics, seconds: float, processes: int) -> dict[str, Any]:
    read = max(1, found.examples)
    stages = {name: time / read for name, time in zip(STAGES, found.times, strict=True) if time > 0}
    return {
        "seconds": seconds,
        "processes": processes,
        "examples_per_s": found.examples / max(seconds, 1e-9),
        "stages_s": stages,
        "waiting_s": max(0.0, found.waiting) / read,
    }


def _lines(report: DatasetReport) -> Sequence[str]:
    number = formatting.number
    lines = [f"{report.source}: {number(report.examples)} examples, {report.bad_count} bad"]
    for bad in report.bad[:SHOWN_BAD]:
        where = f" ({bad.file})" if bad.file and bad.file not in bad.reason else ""
        lines.append(f"  bad: example {bad.index}{where}: {bad.reason}")
    if report.bad_count > SHOWN_BAD:
        lines.append(f"  bad: {report.bad_count - SHOWN_BAD} more; --json names up to 10,000")
    if report.files:
        lines.append(
            f"checksums: {report.files - len(report.damaged)} of {report.files} files are as they were written"
        )
        lines += [f"  damaged: {path}" for path in report.damaged]
    if report.bytes:
        lines += ["", f"bytes per example: {_range(report.bytes)}; total {number(report.bytes['total'])}"]
        lines += _bars(report.bytes["histogram"])
    for path, field in report.fields.items():
        lines += ["", *_field_lines(path, field)]
    if report.duplicates["examples"]:
        pairs = ", ".join(f"{copy} = {first}" for first, copy in report.duplicates["pairs"])
        lines += ["", f"duplicates: {report.duplicates['examples']} examples equal an earlier one: {pairs}"]
    lines += ["", *_throughput_lines(report.throughput)]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"faster: {text}" for text in report.advice]
    return lines


def _range(found: Mapping[str, Any]) -> str:
    number = formatting.number
    if found["min"] == found["max"]:
        return number(found["min"])
    return f"{number(found['min'])} to {number(found['max'])}, median {number(found['median'])}"


def _bars(bins: Sequence[Sequence[int]]) -> list[str]:
    if not bins:
        return []
    texts = [f"{start:,} - {stop:,}" if start != stop else f"{start:,}" for start, stop, _ in bins]
    return _bar_lines(texts, [count for _, _, count in bins])


def _bar_lines(texts: Sequence[str], counts: Sequence[int]) -> list[str]:
    width, most = max(map(len, texts)), max(counts)
    bars = ["#" * (-(-count * BAR // most)) for count in counts]
    return [f"  {text:>{width}}  {bar:{BAR}}  {count:,}" for text, bar, count in zip(texts, bars, counts, strict=True)]


def _field_lines(path: str, field: Mapping[str, Any]) -> list[str]:
    shapes = " or ".join(str(shape) if shape else "" for shape, _ in field["shapes"])
    if more := field["different_shapes"] - len(field["shapes"]):
        shapes += f" and {more} more shapes"
    if lengths := field.get("lengths"):
        each = field["shapes"][0][0][1:]
        shapes = f"[{', '.join([f'{lengths["min"]} to {lengths["max"]}', *map(str, each)])}]"
    texts = [f"{path}: {field['dtype']}{shapes}"]
    if field["min"] is not None:
        texts.append(f"values {formatting.number(field['min'])} to {formatting.number(field['max'])}")
    if field["constant"]:
        texts.append("constant")
    if bad := field.get("not_finite"):
        first = ", ".join(map(str, bad["first"]))
        texts.append(f"NOT FINITE in {bad['examples']} examples (the first: {first})")
    lines = ["  ".join(texts)]
    if lengths := field.get("lengths"):
        lines += [f"  length: {_range(lengths)}", *_bars(lengths["histogram"])]
    if classes := field.get("classes"):
        shown = sorted(classes.items(), key=lambda item: -item[1])[:MOST_CLASSES]
        total = sum(classes.values())
        lines += ["  classes:"]
        width = max(len(value) for value, _ in shown)
        texts = [f"{value:>{width}} {count / total:6.1%}" for value, count in shown]
        lines += _bar_lines(texts, [count for _, count in shown])
        lines += [f"  and {len(classes) - MOST_CLASSES} rarer classes"] if len(classes) > MOST_CLASSES else []
    return lines


def _throughput_lines(found: Mapping[str, Any]) -> list[str]:
    each = sum(found["stages_s"].values())
    lines = [
        f"read in {formatting.duration(found['seconds'])} by {found['processes']} "
        f"process{'es' * (found['processes'] > 1)}: {formatting.number(found['examples_per_s'])} examples/s with the "
        "check"
    ]
    for name, seconds in found["stages_s"].items():
        rate = formatting.number(float(f"{1 / max(seconds, 1e-9):.3g}"))
        lines.append(f"  {name:10}{seconds / each:5.0%}  {rate} examples/s per process")
    return lines
