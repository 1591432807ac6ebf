"""Prints which models pass as ONNX: the largest difference of each output from the engine, by the number of rows.

python -m benchmarks.onnx_models --onnx-python=PYTHON [--only=mlp,cnn] [--markdown]

The workloads are those of `benchmarks.bundles`. Each model is traced once for any number of rows, and onnxruntime runs
it with 1, 2 and 5. A difference is relative to max(1, the largest value); an output of whole numbers has 1 if any
differs. The exit code is 1 if a model does not pass.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import engine
from benchmarks import report
from benchmarks.bundle_workloads import WORKLOADS, Workload
from engine.base.errors import ConvoyError
from engine.base.formatting import aligned, size_text
from engine.bundles.exported import entries_of
from engine.bundles.forward import forward_of
from engine.bundles.onnx.convert import OnnxProgram, convert
from engine.bundles.onnx.request import Method
from engine.bundles.parity import differences
from engine.bundles.program import input_specs
from engine.bundles.samples import engine_function, sample_data
from engine.config import load
from engine.data.source import ArraySource, example_spec

ROWS = (1, 2, 5)
COLUMNS = ("model", "output", *(f"{rows} rows" if rows > 1 else "1 row" for rows in ROWS), "size", "time")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Converted:
    """An entry point as ONNX.

    Attributes:
        name: name of the entry point.
        program: the ONNX model.
        parity: the differences of each output by its name, for each of `ROWS`.
    """

    name: str
    program: OnnxProgram
    parity: Mapping[str, Sequence[float]]


def converted(run: str | Path, evaluation: str, python: str | None) -> list[Converted]:
    """Converts the entry points of a run and compares them with the engine. Raises ConvoyError.

    Args:
        run: the run directory.
        evaluation: whose data gives the rows.
        python: interpreter of the environment with jax2onnx.
    """
    found = engine.load(run)
    data = sample_data(found, evaluation)
    [batch] = data.batches(max(ROWS), 1)
    train, methods, expected = found.config.train, list[Method](), list[Sequence[Any]]()
    for entry in entries_of(found.task):
        given, example = batch, data.example
        if entry.inputs is not None:
            given = {name: np.resize(x, (max(ROWS), *x.shape[1:])) for name, x in entry.inputs(data.task).items()}
            example = example_spec(ArraySource(given))
        made = (data.task, found.model, np.float32, example, entry.name, train.global_batch_size)
        inputs = input_specs(forward_of(*made), None, entry.shapes)
        calls = [{name: x[:rows] for name, x in given.items()} for rows in ROWS]
        cases = [([{name: x for name, x in call.items() if name in inputs}], {}) for call in calls]
        methods.append(Method(entry.name, example, inputs, train.global_batch_size, cases))
        compute = engine_function(found, data, entry, example)
        expected.append([compute(call) for call in calls])
    programs = convert(found, methods, python)
    return [
        Converted(method.name, program, _by_output(program.outputs, wanted))
        for method, program, wanted in zip(methods, programs, expected, strict=True)
    ]


def _by_output(found: Sequence[Any], expected: Sequence[Any]) -> dict[str, list[float]]:
    compared = [differences(have, want) for have, want in zip(found, expected, strict=True)]
    return {name: [one[name] for one in compared] for name in compared[0]}


def _rows(workload: Workload, args: argparse.Namespace) -> Iterator[tuple[Sequence[str], bool]]:
    """Trains a workload; yields the lines of its outputs, and whether they pass."""
    with tempfile.TemporaryDirectory(prefix="convoy-onnx-") as folder:
        run, began = Path(folder) / "run", time.perf_counter()
        try:
            engine.train(load(workload.config, workload.changes(args.steps)), workdir=run)
            began = time.perf_counter()
            found = converted(run, workload.evaluation, args.onnx_python)
        except ConvoyError as error:
            yield (workload.title, str(error)), False
            return
        taken = f"{time.perf_counter() - began:.0f} s"
    for one in found:
        size = size_text(len(one.program.model))
        for name, values in one.parity.items():
            cells = [f"{value:.1e}" if value else "0" for value in values]
            yield (workload.title, f"{one.name}: {name}", *cells, size, taken), max(values) <= TOLERANCE


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a model does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="NAMES", help="workloads (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of training (default: of each workload)")
    parser.add_argument("--onnx-python", metavar="PATH", help="a Python with jax2onnx")
    parser.add_argument("--markdown", action="store_true", help="a table of Markdown")
    args = parser.parse_args(argv)
    rows, failed = list[Sequence[str]]([COLUMNS]), False
    for name in args.only.split(","):
        report.progress(WORKLOADS[name].title)
        for row, passes in _rows(WORKLOADS[name], args):
            rows.append(row)
            failed |= not passes
            print("  ".join(row), file=sys.stderr, flush=True)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join([lines[0], f"|{'---|' * len(COLUMNS)}", *lines[1:]] if args.markdown else aligned(rows)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
