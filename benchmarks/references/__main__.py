"""Compares what the engine computes with what well-known outside programs compute from the same inputs.

python -m benchmarks.references --environments=FOLDER
python -m benchmarks.references --environments=FOLDER --only=average_precision --cases=100
python -m benchmarks.references --environments=FOLDER --only=backbones,language,adapters
python -m benchmarks.references --environments=FOLDER --only=backbones --items=tiny-vit,resnet18

Each comparison is a noun: `benchmarks/references/<noun>.py` draws inputs and compares, and the outside program runs in
an environment of its own, installed from `locks/<noun>.txt` with hashes. The output names its packages first. A row has
the item, the number of cases, the largest difference, and the difference that is allowed; 0 means equal bits. The first
run downloads the packages; later runs use the environments in FOLDER again. No accelerator is needed.

Exit code: 0 if all agree, 1 if a difference is larger than allowed or a comparison fails, 2 for a wrong argument.

The tests compare the engine with golden numbers, without the outside programs. --golden writes these, such as those of
average_precision, detection_score and kitti_precision into tests/driving/golden/references.

To add a comparison, write locks/<noun>.in and compile it (see locks/README.md), write outside/<noun>.py, a program that
imports nothing of the engine, reads inputs from the folder that it is given and writes results there, and <noun>.py
with a function `compare(environment, cases)` that yields a `Row` for each item.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.references.environment import NOUNS, Environment
from benchmarks.references.rows import Row
from engine.base.errors import ConvoyError, RunError

COLUMNS = ("item", "cases", "largest difference", "allowed")
CASES = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparisons and prints a table; returns 1 if one differs or fails."""
    args = _parse(argv)
    nouns = args.only.split(",") if args.only else list(NOUNS)
    if unknown := [noun for noun in nouns if noun not in NOUNS]:
        print(f"--only: {', '.join(unknown)} is unknown. Comparisons: {', '.join(NOUNS)}.", file=sys.stderr)
        return 2
    if problem := _unknown_items(args.items, nouns):
        print(f"--items: {problem}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(nouns))
        return 0
    if args.environments:
        return _compare_all(nouns, args.environments, args)
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as folder:
        return _compare_all(nouns, Path(folder), args)


def _unknown_items(items: Sequence[str], nouns: Sequence[str]) -> str | None:
    """Returns what is wrong with the items, if something is."""
    if not items:
        return None
    if len(nouns) != 1:
        return "belongs to one comparison. Give it with --only."
    known = list(getattr(importlib.import_module(f"benchmarks.references.{nouns[0]}"), "ITEMS", ()))
    if unknown := [item for item in items if item not in known]:
        return f"{', '.join(unknown)} is unknown. Items of {nouns[0]}: {', '.join(known) or 'none'}."
    return None


def _compare_all(nouns: Sequence[str], folder: Path, args: argparse.Namespace) -> int:
    failed, rows = False, []
    print(_line(COLUMNS), flush=True)
    for noun in nouns:
        start, before = time.perf_counter(), len(rows)
        environment = Environment(noun, folder, args.golden, items=args.items)
        print(f"{noun}: with {', '.join(environment.packages)}", flush=True)
        try:
            comparison = importlib.import_module(f"benchmarks.references.{noun}")
            for row in comparison.compare(environment, args.cases):
                failed |= not row.agrees
                rows.append({"noun": noun, **asdict(row)})
                print(_line(_cells(noun, row)), flush=True)
            if len(rows) == before:
                raise RunError("it gave no rows")
        except ConvoyError as error:
            failed = True
            print(f"{noun}: failed: {error}", file=sys.stderr, flush=True)
        print(f"{noun}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(failed)


def _cells(noun: str, row: Row) -> tuple[str, ...]:
    verdict = "" if row.agrees else "  DIFFERS"
    return f"{noun}: {row.item}", str(row.cases), f"{row.largest_difference:.3g}", f"{row.tolerance:g}{verdict}"


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (72, 7, 18, 8), strict=True)).rstrip()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.references",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NOUNS", help=f"comparisons, separated by commas, of: {', '.join(NOUNS)}")
    parser.add_argument(
        "--items", type=lambda text: tuple(text.split(",")), default=(), metavar="NAMES", help="items of a comparison"
    )
    parser.add_argument("--list", action="store_true", help="list the comparisons and exit")
    parser.add_argument(
        "--cases", type=_positive, default=CASES, metavar="N", help="random inputs per item (%(default)s)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        help="keep the environments here; without it they are removed at the end",
    )
    parser.add_argument(
        "--golden", type=Path, metavar="FOLDER", help="write golden numbers: the first sets and the outside results"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
