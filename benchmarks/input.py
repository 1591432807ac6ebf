"""Measures how many examples per second two readers give: the engine, a plain Grain pipeline, and PyTorch's DataLoader.

tools/bazel run //benchmarks:input [-- --torch=PYTHON]
python -m benchmarks.input --torch=PYTHON

All read the same files with the same decoder and transform, in two readers. The engine and Grain run with two threads
and with two worker processes, of which the faster counts; PyTorch has worker processes only. Each reader is a process,
and all take turns. The ratio is that of the engine to the faster of the others. Only the engine resumes exactly on any
number of processes, which each row checks. PYTHON is an interpreter that has torch, and simplejpeg for the cameras.
The exit code does not depend on the targets.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import input_engine, input_files, report
from benchmarks.input_files import TITLES
from benchmarks.report import Row
from benchmarks.worker import Worker

ENGINE, GRAIN, TORCH = "engine", "Grain", "PyTorch"
TARGETS = {"scenes": 1.2, "small": 1.2}
"""Row -> least ratio; 0.95 for the others."""
MODES = ("threads", "processes")
SLOWER = 0.6
"""A mode that is so much slower than the other mode of its library in the first turn is not measured further."""
RESUMES_AT = 3
"""Batch at which the check of each row resumes."""

type Rates = Mapping[tuple[str, str], Sequence[float]]
"""(library, mode) -> examples per second of each turn."""


def start(
    name: str, folder: Path, stack: contextlib.ExitStack, torch: str | None, modes: Sequence[str]
) -> dict[tuple[str, str], Worker]:
    """Starts the readers of a row."""
    modules = {(library, mode): f"benchmarks.input_{library.lower()}" for library in (ENGINE, GRAIN) for mode in modes}
    commands = {
        key: [sys.executable, "-m", module, json.dumps([name, str(folder), key[1]])] for key, module in modules.items()
    }
    if torch:
        script = str(Path(__file__).with_name("input_torch.py"))
        commands[TORCH, "processes"] = [torch, script, json.dumps([name, str(folder), "processes"])]
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    return {
        key: stack.enter_context(Worker(command, {"PYTHONPATH": ""} if key[0] == TORCH else path))
        for key, command in commands.items()
    }


def measure(
    name: str, folder: Path, turns: int, seconds: float, torch: str | None, modes: Sequence[str] = MODES
) -> Rates:
    """Returns the rates of each reader of a row, measured in turns."""
    milliseconds = max(1, round(1e3 * seconds))
    with contextlib.ExitStack() as stack:
        workers = start(name, folder, stack, torch, modes)
        report.progress(f"input, {name}: starting")
        first = {key: worker.turn(milliseconds)[0] for key, worker in workers.items()}
        fastest = {library: max(rate for key, rate in first.items() if key[0] == library) for library, _ in first}
        rates: dict[tuple[str, str], list[float]] = {
            key: [] for key, rate in first.items() if rate >= SLOWER * fastest[key[0]]
        }
        for i in range(turns):
            report.progress(f"input, {name}: turn {i + 1} of {turns}")
            for key in list(rates) if i % 2 == 0 else reversed(list(rates)):
                rates[key] += workers[key].turn(milliseconds)
        for worker in workers.values():
            worker.close()  # worker processes of Grain outlive one that is killed
    return rates


def row(name: str, rates: Rates) -> Row:
    """Returns the row of a source: the ratio of the engine to the better of the other libraries."""
    best: dict[str, tuple[str, Sequence[float]]] = {}
    for (library, mode), values in rates.items():
        if library not in best or statistics.median(values) > statistics.median(best[library][1]):
            best[library] = (mode, values)
    _, other = max(((k, v[1]) for k, v in best.items() if k != ENGINE), key=lambda pair: statistics.median(pair[1]))
    texts = [
        f"{library} {statistics.median(values):,.0f} ({mode if library != TORCH else 'workers'})"
        for library, (mode, values) in best.items()
    ]
    skipped = "" if TORCH in best else "; without PyTorch: give --torch=PYTHON, with simplejpeg for the cameras"
    return Row(
        f"examples per second, engine / best other: {TITLES[name]}",
        report.ratios(best[ENGINE][1], other),
        at_least=TARGETS.get(name, 0.95),
        note=f"{', '.join(texts)} examples/s; the engine resumes exactly{skipped}",
    )


def check_resume(name: str, folder: Path) -> None:
    """Raises RuntimeError if a feed that starts at a later batch gives another batch than the first feed there."""
    found = []
    for first in (0, RESUMES_AT):
        with contextlib.closing(input_engine.open_feed(name, folder, start=first)) as feed:
            batches = [feed.next(1)[0].examples for _ in range(RESUMES_AT + 1 - first)]
        found.append(jax.tree.leaves(batches[-1]))
    if not all(np.array_equal(*pair) for pair in zip(*found, strict=True)):
        raise RuntimeError(f"{name}: a feed that resumes at batch {RESUMES_AT} gives another batch")


def has_simplejpeg(python: str) -> bool:
    """Returns whether an interpreter has simplejpeg."""
    command = [python, "-c", "import simplejpeg"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, stderr=subprocess.DEVNULL).returncode == 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--only", choices=input_files.SOURCES)
    parser.add_argument("--small", action="store_true", help="few small files and only threads, to try the program")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures each source and yields its row."""
    for name in input_files.SOURCES if args.only is None else (args.only,):
        if name == "cameras" and importlib.util.find_spec("simplejpeg") is None:
            print(f"{TITLES[name]}: left out. It needs simplejpeg: pip install simplejpeg", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="convoy-benchmark-") as folder:
            input_files.write(name, folder, args.small)
            check_resume(name, Path(folder))
            modes = MODES[:1] if args.small else MODES
            torch = args.torch if args.torch and (name != "cameras" or has_simplejpeg(args.torch)) else None
            yield row(name, measure(name, Path(folder), args.turns, args.seconds, torch, modes))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--small", "--turns=1", "--seconds=0.02", "--only=scenes"))
