"""Prints the operations of `engine.perception`: errors against references, and costs beside the obvious way.

tools/bazel run //benchmarks:perception [-- --turns 10 --only=nms,match]
python -m benchmarks.perception          times on this CPU, at sizes of a small model
python -m benchmarks.perception --aot    costs on 16 TPU v5e and 8 H100, which are absent, at sizes of published models

*Value* and *gradient* are the largest differences from the reference. PyTorch and torchvision have written golden
numbers, in tests/perception/golden. Other operations are compared with SciPy or a loop in numpy, or with the obvious
way in JAX with float64, on random inputs; those differences are relative to the largest value. Times are medians of a
compiled call, of the value and, where there is one, of its gradients. Costs are of the same program, on one device with
two examples. The number in parentheses is that of the obvious way. ">" marks a loop whose length depends on values, of
which one round is counted. --aot needs the extra `aot`, and takes long: --only chooses operations.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.aot import perception as aot
from benchmarks.perception_cases import REAL, SMALL, Case, cases
from benchmarks.references import perception as references
from engine.base.errors import ConvoyError

GOLDEN = Path("tests/perception/golden/perception")
BATCH = 2
TARGETS: Mapping[str, tuple[str, int]] = {"v5e": ("v5e:4x4", 16), "h100": ("h100:1x8", 8)}
"""Name -> target, and its devices."""
TIMES = ("operation", "value", "gradient", "reference", "ms", "obvious, ms")
COSTS = (
    *TIMES[:4],
    "v5e: k cycles",
    "MiB",
    "padding",
    "h100: launches",
    "MiB",
    "collectives",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if an operation differs from its reference by more than 1e-3."""
    args = _parse(argv)
    table = cases(SMALL, BATCH)
    names = args.only.split(",") if args.only else list(table)
    if unknown := [name for name in names if name not in table]:
        print(f"--only: {', '.join(unknown)} is unknown. Operations: {', '.join(table)}.", file=sys.stderr)
        return 2
    print(_line(COSTS if args.aot else TIMES), flush=True)
    failed = False
    for name in names:
        value, gradient, reference = errors(table[name])
        failed |= not max(value, gradient or 0) <= 1e-3
        cells = (name, f"{value:.1e}", "-" if gradient is None else f"{gradient:.1e}", reference)
        more = ahead(name, args.json) if args.aot else times(table[name], args.turns)
        print(_line((*cells, *more)), flush=True)
    return int(failed)


def errors(case: Case) -> tuple[float, float | None, str]:
    """Returns the largest errors of the value and of the gradients, and the name of the reference."""
    if case.golden:
        rows = list(references.compared(GOLDEN, case.golden))
        value, gradient = (
            [row.largest_difference for row in rows if row.item.endswith(", gradient") == kind]
            for kind in (False, True)
        )
        return max(value), max(gradient) if gradient else None, "PyTorch"
    inputs = case.inputs(jax.random.key(0))
    ours = compiled(case, case.run, inputs)(*inputs)
    if case.host is not None:
        return _difference(ours[0], case.host(*inputs)), None, "numpy"
    assert case.obvious is not None
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs)
        wanted = compiled(case, case.obvious, exact)(*exact)
    return _difference(ours[0], wanted[0]), _difference(ours[1], wanted[1]) if case.differentiable else None, "JAX"


def _difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference, relative to the largest value where that is above 1."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = a == b  # also infinities
        worst = max(worst, np.where(same, 0, np.abs(a - b)).max(initial=0) / max(np.abs(b[~same]).max(initial=0), 1))
    return float(worst)


def compiled(case: Case, way: Callable[..., Any], inputs: tuple[Any, ...]) -> Callable[..., Any]:
    """Returns a compiled function of the inputs: the value and the gradients of a sum with fixed weights."""
    value = jax.eval_shape(way, *inputs)
    weights = None
    if case.differentiable:
        weights = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype), value)
    run = jax.jit(aot.differentiated(way, case.differentiable))
    return lambda *inputs: run(inputs, weights)


def times(case: Case, turns: int) -> Iterator[str]:
    """Yields the milliseconds of the operation and of the obvious way."""
    inputs = case.inputs(jax.random.key(0))
    yield f"{milliseconds(compiled(case, case.run, inputs), inputs, turns):.2f}"
    found = [] if case.obvious is None else [f"{milliseconds(compiled(case, case.obvious, inputs), inputs, turns):.2f}"]
    if case.host is not None:
        inputs = jax.device_get(inputs)
        found.append(f"numpy {milliseconds(case.host, inputs, min(turns, 3)):.2f}")
    yield ", ".join(found) or "-"


def milliseconds(run: Callable[..., Any], inputs: Sequence[Any], turns: int) -> float:
    """Returns the median time of a call, after a first one that compiles."""
    jax.block_until_ready(run(*inputs))
    took = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took)


def ahead(name: str, stored: Path | None) -> Iterator[str]:
    """Yields the costs of an operation, and of the obvious way in parentheses; adds all of them to a file."""
    everything: dict[str, dict[str, Any]] = {"ours": {}, "obvious": {}}
    for target, (text, count) in TARGETS.items():
        case = cases(REAL, aot.ROWS * count)[name]
        for kind, way in (("ours", case.run), ("obvious", case.obvious)):
            everything[kind][target] = None if way is None else _costs(case, way, text)
    if stored is not None:
        known = json.loads(stored.read_text()) if stored.exists() else {}
        known[name] = jax.tree.map(
            lambda x: x and dataclasses.asdict(x),
            everything,
            is_leaf=lambda x: x is None or dataclasses.is_dataclass(x),
        )
        stored.write_text(json.dumps(known, indent=1))
    pairs = {target: (everything["ours"][target], everything["obvious"][target]) for target in TARGETS}
    yield _both(pairs["v5e"], lambda c: f"{'>' if c.rounds_unknown else ''}{c.cycles / 1e3:,.0f}")
    yield _both(pairs["v5e"], lambda c: f"{c.bytes / 2**20:,.0f}")
    yield _both(pairs["v5e"], lambda c: f"{c.padding:.0%}")
    yield _both(pairs["h100"], lambda c: f"{'>' if c.rounds_unknown else ''}{c.launches:,.0f}")
    yield _both(pairs["h100"], lambda c: f"{c.bytes / 2**20:,.0f}")
    yield _both(pairs["v5e"], lambda c: str(c.collectives))


def _costs(case: Case, way: Callable[..., Any], target: str) -> aot.Costs | str:
    try:
        return aot.costs(case, way, target)
    except ConvoyError:
        raise
    except Exception as error:  # a program that does not fit into the memory of the device
        return type(error).__name__


def _both(pair: tuple[Any, Any], text: Callable[[aot.Costs], str]) -> str:
    ours, obvious = ("does not fit" if isinstance(x, str) else x and text(x) for x in pair)
    return f"{ours} ({obvious})" if obvious else str(ours)


def _line(cells: Sequence[str]) -> str:
    widths = (22, 8, 9, 10, 20, 16, 12, 16, 16, 8)
    return " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.perception",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=10, metavar="N", help="calls that are timed (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help="operations, separated by commas")
    parser.add_argument("--aot", action="store_true", help="compile for absent accelerators instead of measuring times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all costs of --aot to a file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
