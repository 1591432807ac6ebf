"""Compares optimizers on shortened tasks, in resumable chunks whose rows are committed.

python -m benchmarks.optimizers plan                            # the chunks, their minutes, and what is done
python -m benchmarks.optimizers run --chunk=lm-adamw            # trains what has no row yet
python -m benchmarks.optimizers report                          # tables from the rows
python -m benchmarks.optimizers plot                            # figures from the rows, into docs/images

A chunk takes one core: two chunks can run at a time on two cores. Each trained run appends a row to
benchmarks/optimizers/rows.jsonl, and a run that has a row is not repeated, so the same command continues a chunk that
was killed. --chunk takes several names and patterns, such as --chunk='lm-*'. --tiny tries the programs on digits.
"""

import argparse
import contextlib
import fnmatch
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.optimizers import rows
from benchmarks.optimizers.chunks import Chunk, chunks, tiny_chunks
from benchmarks.optimizers.further import MissingRows
from benchmarks.optimizers.rows import Row
from engine.base import files
from engine.base.errors import ConvoyError

FOLDER = Path("data") / "eth_ucy"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 1 if it failed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.optimizers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("plan", "prints the chunks"),
        ("run", "trains chunks"),
        ("report", "prints tables"),
        ("plot", "draws figures"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--rows", type=Path, default=rows.ROWS, help="file of the rows")
        command.add_argument("--tiny", action="store_true", help="the small chunks that try the programs")
        if name == "run":
            command.add_argument("--chunk", required=True, help="names or patterns, separated by commas")
            command.add_argument("--eth-ucy", default=str(FOLDER), help="folder of the recordings (%(default)s)")
        if name == "plot":
            images = Path(__file__).parents[2] / "docs" / "images"
            command.add_argument("--output", type=Path, default=images, help="folder of the figures")
    args = parser.parse_args(argv)
    found = tiny_chunks() if args.tiny else chunks()
    try:
        {"plan": _plan, "run": _run, "report": _report, "plot": _plot}[args.command](args, found)
    except (ConvoyError, MissingRows) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace, found: Mapping[str, Chunk]) -> None:
    names = _select(args.chunk, found)
    with _own_core():
        from benchmarks.optimizers.training import train, train_in_turns  # JAX begins with the core of this process

        for name in names:
            begin, count = time.monotonic(), 0
            chunk = found[name]
            while runs := chunk.next_runs(rows.read(args.rows)):
                if chunk.in_turns:
                    trained = train_in_turns(runs, args.eth_ucy)
                else:
                    trained = [train(run, args.eth_ucy, report.progress) for run in runs]
                for row in trained:
                    rows.append(row, args.rows)
                    print(f"{name} {_described(row)}", flush=True)
                count += len(trained)
            minutes = (time.monotonic() - begin) / 60
            print(f"{name}: {count} runs, {minutes:.1f} minutes; the chunk is done", flush=True)


def _described(row: Row) -> str:
    """Returns a line about a row."""
    settings = " ".join(f"{key}={value}" for key, value in row.run.settings.items())
    loss = "diverged" if row.diverged else f"loss {row.final:.5g}" if row.loss else "not evaluated"
    text = f"{row.run.group}, {row.run.kind} seed {row.run.seed}, {settings}: {loss}"
    return f"{text}, {row.cpu_s:.1f} s, {row.step_ms:.2f} ms a step"


def _select(text: str, found: Mapping[str, Chunk]) -> list[str]:
    """Returns the names that patterns match, in the order of the chunks. Raises ConfigError for one without a match."""
    from engine.base.errors import ConfigError, did_you_mean

    patterns = text.split(",")
    for pattern in patterns:
        if not fnmatch.filter(found, pattern):
            raise ConfigError(
                f"--chunk: {pattern!r} matches no chunk.{did_you_mean(pattern, found)} The command plan lists them."
            )
    return [name for name in found if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


@contextlib.contextmanager
def _own_core() -> Iterator[None]:
    """Binds this process to a core that no other chunk of this user uses, until it ends.

    Raises ConfigError if there is none. Where the system cannot bind, the process uses all cores.
    """
    from engine.base.errors import ConfigError

    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        for core in cores:
            path = Path(tempfile.gettempdir()) / f"convoy-optimizers-{os.getuid()}-core-{core}.lock"
            file = stack.enter_context(open(path, "w"))
            if files.lock(file, wait=False):
                os.sched_setaffinity(0, {core})
                yield
                os.sched_setaffinity(0, set(cores))
                return
        raise ConfigError(f"each of the {len(cores)} cores trains another chunk. Wait for one to end.")


def _plan(args: argparse.Namespace, found: Mapping[str, Chunk]) -> None:
    from benchmarks.optimizers.plan import table

    print(table(found, rows.read(args.rows)))


def _report(args: argparse.Namespace, found: Mapping[str, Chunk]) -> None:
    from benchmarks.optimizers.reports import text

    print(text(rows.read(args.rows)))


def _plot(args: argparse.Namespace, found: Mapping[str, Chunk]) -> None:
    from benchmarks.optimizers.plots import draw

    for path in draw(rows.read(args.rows), args.output):
        print(path)


if __name__ == "__main__":
    raise SystemExit(main())
