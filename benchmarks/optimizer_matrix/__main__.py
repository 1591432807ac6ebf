"""Table of the optimizers: outside references, meshes, resume, other settings, bytes of the state, time of the update.

python -m benchmarks.optimizer_matrix --table
python -m benchmarks.optimizer_matrix --rows=benchmarks/optimizer_matrix/rows.json [--only=muon,soap] [--parts=steps]
python -m benchmarks.optimizer_matrix --tiny

The first command prints the committed rows. The second one measures, on 8 simulated devices of the CPU, and writes each
cell at once, so that it may be run in parts; `--parts` names them:

- reference: error of 20 steps against the outside optimizer, from the golden files of tests/optimizers;
- updates: error of 3 updates with given gradients on each mesh, against one device;
- steps: error of 3 whole steps on each mesh, and what a relative change of the parameters by 1e-6 does on one device;
- resume: bits after 2 + 2 steps with a save and a restore, against 4 steps;
- settings: accumulation, EMA, LoRA, bf16 and K steps: "equal", or the sentence of the refusal;
- bytes: optimizer state of one device on each mesh, as a multiple of the parameters of that device;
- time: an update over one of AdamW on one device of this machine;
- compiled: FLOPs, bytes, collectives and modelled time of an update on 8 H100 and 16 v5e, which are absent. It needs
  the extra `aot`.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = HERE / "rows.json"
GOLDEN = HERE.parents[1] / "tests" / "optimizers" / "golden" / "optimizers"

type Rows = dict[str, dict[str, Any]]
"""Optimizer -> part -> what was found."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes the rows and prints the table; returns 1 if an optimizer failed."""
    args = _parse(argv)
    if args.table:
        print(table(json.loads(ROWS.read_text())))
        return 0
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    if args.parts and not {"time", "compiled"} & {*args.parts}:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in less time
    from benchmarks.optimizer_matrix import parts, subjects

    names, chosen = args.only or list(subjects.OPTIMIZERS), args.parts or list(parts.PARTS)
    if args.tiny:
        names, chosen = ["lion"], ["reference", "updates", "bytes"]
    if unknown := [each for each in (*names, *chosen) if each not in {*subjects.OPTIMIZERS, *parts.PARTS}]:
        print(f"{', '.join(unknown)} is unknown. Optimizers: {', '.join(subjects.OPTIMIZERS)}. Parts: "
              f"{', '.join(parts.PARTS)}.", file=sys.stderr)  # fmt: skip
        return 2
    rows: Rows = json.loads(args.rows.read_text()) if args.rows and args.rows.exists() else {}
    failed = False
    for part in chosen:
        for name in names:
            failed |= _measure(parts.PARTS[part], name, part, rows)
            if args.rows:
                args.rows.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    return int(failed)


def _measure(measure: Callable[[str, Path], Any], name: str, part: str, rows: Rows) -> bool:
    """Adds a part of an optimizer to the rows; returns whether it failed."""
    try:
        with tempfile.TemporaryDirectory(prefix="convoy-optimizers-") as folder:
            found = measure(name, Path(folder))
    except Exception as error:
        print(f"{name}, {part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return True
    if found is not None:
        rows.setdefault(name, {})[part] = found
        print(f"{name}, {part}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return False


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table of the rows, as text, and the refusals below it."""
    lines: list[list[str]] = [list(COLUMNS)]
    notes: list[str] = []
    for name, parts in rows.items():
        cells = [name, _number(parts.get("reference"))]
        for part in ("updates", "steps"):
            errors = {mesh: x for mesh, x in parts.get(part, {}).items() if mesh != "shaken"}
            cells.append(_number(max(errors.values())) if errors else "-")
        shaken = parts.get("steps", {}).get("shaken", {})
        cells += [_number(max(shaken.values(), default=None)), parts.get("resume", "-")]
        for setting in SETTINGS:
            found = parts.get("settings", {}).get(setting, "-")
            if found not in ("equal", "-"):
                notes.append(f"{name}, {setting}: {found}")
                found = f"({len(notes)})"
            cells.append(found)
        sizes = parts.get("bytes", {})
        cells += [" ".join(f"{x:.2f}" for x in sizes.values()) or "-", _times(parts.get("time"))]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += ["", *(f"({i}) {note}" for i, note in enumerate(notes, 1))]
    return "\n".join([*text, *_compiled(rows)])


SETTINGS = ("accumulation", "EMA", "LoRA", "bf16", "K steps")
COLUMNS = ("optimizer", "reference", "updates", "steps", "shaken", "resume", *SETTINGS, "state / parameters", "time")


def _compiled(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, parts in rows.items():
        for target, x in parts.get("compiled", {}).items():
            lines.append(
                f"{name}, {target}: {x['gflop']:.0f} GFLOP, {x['gbytes']:.2f} GB moved, {x['sent_mb']:.0f} MB sent in "
                f"{x['collectives']:.0f} collectives, {x['ms']:.2f} ms of the {x['step_ms']:.1f} ms of a step"
            )
    return ["", *lines] if lines else []


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}"


def _times(x: float | None) -> str:
    return "-" if x is None else f"{x:.1f} x"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizer_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = {"type": lambda text: text.split(","), "metavar": "NAMES"}
    parser.add_argument("--only", help="optimizers, separated by commas (default: all)", **names)
    parser.add_argument("--parts", help="parts, separated by commas (default: all)", **names)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="add what is measured to this file")
    parser.add_argument("--table", action="store_true", help="print the committed rows and exit")
    parser.add_argument("--tiny", action="store_true", help="one optimizer and the cheap parts")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
