"""Prints a table of bundles: workload x format, with parity, size, latency at batch 1, and what int8 costs.

tools/bazel run //benchmarks:bundles [-- --only=mlp,cnn --formats=stablehlo,onnx]
python -m benchmarks.bundles --onnx-python=PYTHON

Each workload is trained for some steps, and its run is exported once for each format. *Parity* is the largest
difference from the engine, relative to max(1, the largest value). *Size* is that of the program with its weights. The
latency is that of `convoy bench`: calls in a process of its own, on one core, after a warm-up. *int8* is the metric of
the evaluation in floats and in int8, with the 95 % interval of the difference over examples where there is one.
ONNX needs an interpreter with onnxruntime; the reasons for missing formats follow the table. The exit code is 1
if a program differs from the engine. --markdown writes the table of docs/benchmarks.md.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine
from benchmarks import report
from benchmarks.bundle_workloads import WORKLOADS, Workload
from engine.base.errors import ConvoyError
from engine.base.formatting import aligned, number, size_text
from engine.bundles import bench
from engine.bundles.bundle import Bundle
from engine.bundles.export import export_bundle
from engine.bundles.manifest import BundleError
from engine.bundles.options import Options
from engine.config import load
from engine.quantization.runs import Settings

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "stablehlo": dict(formats=("stablehlo",)),
    "onnx": dict(formats=("onnx",)),
    "int8": dict(formats=("stablehlo",), quantize=Settings("int8")),
}
"""Format -> fields of `engine.bundles.options.Options`."""
TITLES = {"stablehlo": "StableHLO", "onnx": "ONNX", "int8": "StableHLO, int8"}
COLUMNS = ("workload", "format", "parity", "size", "p50", "p99", "metric", "int8")
TINY = ("--only=mlp", "--formats=stablehlo", "--steps=2", "--calls=20")


@dataclasses.dataclass(frozen=True)
class Cells:
    """What was measured of one workload in one format.

    Attributes:
        parity: largest difference of an output from the engine.
        size: bytes of the program and its weights.
        seconds: of a call: "p50", "p99".
        quality: name, value in floats, value in int8 and the interval of the difference, None without one; None for
            a format in floats.
        problem: why the format is missing.
    """

    parity: float = 0.0
    size: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    quality: tuple[str, float, float, Sequence[float] | None] | None = None
    problem: str = ""

    def texts(self) -> list[str]:
        """Returns the cells of the table."""
        if self.problem:
            return ["no"]
        times = [bench.time_text(self.seconds[name]) for name in ("p50", "p99")]
        cells = [f"{self.parity:.1e}", size_text(self.size), *times]
        if self.quality is None:
            return cells
        metric, before, after, interval = self.quality
        limits = "" if interval is None else f" ({interval[0]:+.2g} to {interval[1]:+.2g})"
        return [*cells, metric, f"{number(before)} -> {number(after)}{limits}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a program differs from the engine."""
    args = _parse(argv)
    print(report.machine(), flush=True)
    rows, notes, differs = list[Sequence[str]]([COLUMNS]), list[str](), False
    for name in args.only:
        with tempfile.TemporaryDirectory(prefix="convoy-bundles-") as folder:
            for kind, cells, is_different in measured(WORKLOADS[name], args, Path(folder)):
                differs |= is_different
                rows.append((WORKLOADS[name].title, TITLES[kind], *cells.texts()))
                notes += [f"{WORKLOADS[name].title}, {TITLES[kind]}: {cells.problem}"] if cells.problem else []
                report.clear_progress()
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    lines = [f"| {' | '.join([*row, *[''] * (len(COLUMNS) - len(row))])} |" for row in rows]
    table = [lines[0], f"|{'---|' * len(COLUMNS)}", *lines[1:]] if args.markdown else aligned(rows)
    print("\n".join(table))
    print("".join(f"\n{note}\n" for note in notes), end="")
    return int(differs)


def measured(workload: Workload, args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Cells, bool]]:
    """Trains a workload, and yields what was measured of each format, and whether it differs from the engine."""
    run = folder / "run"
    report.progress(f"{workload.title}: training")
    try:
        engine.train(load(workload.config, workload.changes(args.steps)), workdir=run)
    except ConvoyError as error:  # its data is missing here
        yield from ((kind, Cells(problem=str(error)), False) for kind in args.formats)
        return
    for kind in args.formats:
        report.progress(f"{workload.title}: {TITLES[kind]}")
        try:
            yield kind, cells_of(workload, kind, run, folder / f"{kind}.zip", args), False
        except ConvoyError as error:
            yield kind, Cells(problem=str(error)), isinstance(error, BundleError)


def cells_of(workload: Workload, kind: str, run: Path, out: Path, args: argparse.Namespace) -> Cells:
    """Exports a run in one format, and returns what was measured. Raises ConvoyError if that is not possible."""
    options = Options(
        **FORMATS[kind],
        evaluation=workload.evaluation,
        overrides=[f"evaluations.{workload.evaluation}.data.limit={workload.examples}"],
    )
    found = export_bundle(run, out, options=options, on_message=report.progress)
    name, entry = next(iter(found.entries.items()))
    program = entry.programs[FORMATS[kind]["formats"][0]]
    files = [file for file in (program["file"], program.get("weights")) if file]
    settings = bench.Options(entries=[name], calls=args.calls, onnx_python=args.onnx_python)
    (one,) = bench.bench(out, settings, on_message=report.progress)
    size = sum(found.manifest["files"][file]["bytes"] for file in files)
    return Cells(max(program["parity"].values()), size, one.seconds, quality(found, workload))


def quality(found: Bundle, workload: Workload) -> tuple[str, float, float, Sequence[float] | None] | None:
    """Returns the metric of a workload in floats and in int8; None for a bundle in floats."""
    if "quantization" not in found.manifest:
        return None
    stored = next(iter(found.manifest["quantization"].values()))
    name = f"{workload.evaluation}/{workload.metric}"
    metrics = stored["metrics"]
    return workload.metric, metrics["float"][name], metrics["quantized"][name], stored["intervals"].get(name)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bundles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="NAMES", help="workloads (%(default)s)")
    parser.add_argument("--formats", default=",".join(FORMATS), metavar="NAMES", help="formats (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of training (default: of each workload)")
    parser.add_argument("--calls", type=int, default=1000, metavar="N", help="calls that are timed (%(default)s)")
    parser.add_argument("--onnx-python", metavar="PYTHON", help="an interpreter that has onnxruntime")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument("--tiny", action="store_true", help=f"try the program: {' '.join(TINY)}")
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    if args.tiny:
        args = parser.parse_args([*TINY, *words])
    for flag, allowed in (("only", WORKLOADS), ("formats", FORMATS)):
        names = getattr(args, flag).split(",")
        if unknown := [name for name in names if name not in allowed]:
            parser.error(f"--{flag}: {', '.join(unknown)} is unknown. Allowed: {', '.join(allowed)}.")
        setattr(args, flag, names)
    return args


if __name__ == "__main__":
    sys.exit(main())
