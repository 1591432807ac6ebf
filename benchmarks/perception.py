"""Prints the operations of `engine.perception`: errors against references, and CPU time of two ways.

tools/bazel run //benchmarks:perception [-- --turns 10 --only=nms,match]
python -m benchmarks.perception

*Value* and *gradient* are the largest differences from the golden numbers of PyTorch, in tests/perception/golden; "-"
has none, and the tests compare it with a slow reference in numpy. The times are medians of a compiled call, of the
value and, where there is one, of its gradients. `benchmarks/perception_obvious.py` has the obvious ways.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks import perception_obvious as obvious
from benchmarks.references import perception as references
from engine import perception

GOLDEN = Path("tests/perception/golden/perception")
BATCH = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, the obvious way, inputs for both, and the start of the names of its golden items."""

    run: Callable[..., Any]
    obvious: Callable[..., Any] | None
    inputs: tuple[Any, ...]
    golden: str = ""
    differentiable: int = 0
    """Number of the first inputs of which gradients are computed."""
    host: bool = False
    """Whether the obvious way is no program of JAX."""


def cases() -> dict[str, Case]:
    """Returns the operations by name, at sizes of a small model."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def whole(most: int, *shape: int) -> np.ndarray:
        return rng.integers(0, most, shape).astype(np.int32)

    cells, points = 128**2, 20000
    x, index = normal(BATCH, points, 32), whole(cells + 100, BATCH, points)
    boxes = np.concatenate([rng.uniform(0, 30, (BATCH, 256, 2)), rng.uniform(1, 5, (BATCH, 256, 3))], -1)
    boxes = boxes.astype(np.float32)
    other = boxes[:, ::-1] + rng.normal(size=boxes.shape).astype(np.float32) / 4
    pair = (boxes[:, :, None], other[:, None])
    scores = -np.sort(-rng.random((BATCH, 256), np.float32))
    flat = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:4]], -1)
    objects = (whole(128, BATCH, 100, 2), whole(8, BATCH, 100), whole(4, BATCH, 100), np.ones((BATCH, 100), bool))
    drawing = {"shape": (128, 128), "classes": 4}
    lift = (normal(BATCH, 1500, 32), rng.random((BATCH, 1500, 40), np.float32), whole(cells, BATCH, 1500, 40))
    shape, capacity = (16, 64, 64), 4000
    sites = np.sort(np.stack([rng.choice(int(np.prod(shape)), capacity, replace=False) for _ in range(BATCH)]))
    sites, kernel = sites.astype(np.int32), normal(3, 3, 3, 16, 16)
    cost = rng.random((BATCH, 300, 64), np.float32)
    levels = [normal(BATCH, size, size, 8, 16) for size in (48, 24, 12)]
    attention = (rng.random((BATCH, 300, 8, 3, 4, 2), np.float32), rng.random((BATCH, 300, 8, 3, 4), np.float32))
    grid = (normal(BATCH, 64, 64, 32), rng.uniform(-1, 1, (BATCH, 4000, 2)).astype(np.float32))

    def sparse(features: Any, kernel: Any) -> Any:
        return perception.submanifold_conv(perception.SparseGrid(jnp.asarray(sites), features, shape), kernel).features

    def dense(features: Any, kernel: Any) -> Any:
        whole = perception.SparseGrid(jnp.asarray(sites), features, shape).dense()
        found = obvious.convolved(whole, kernel).reshape(BATCH, -1, 16)
        return jnp.take_along_axis(found, jnp.asarray(sites)[..., None], 1)

    def suppress(boxes: Any, scores: Any) -> Any:
        found = perception.nms(boxes, scores, 256, threshold=0.3)
        return jnp.zeros(scores.shape).at[jnp.arange(BATCH)[:, None], found.indices].max(found.valid)

    def loop(boxes: Any, scores: Any) -> Any:
        return obvious.greedy(perception.box_iou(boxes[:, :, None], boxes[:, None]) > 0.3) * 1.0

    def assigned(cost: Any) -> Any:
        return np.stack([linear_sum_assignment(one.T)[1] for one in cost])

    return {
        "grid_sample": Case(perception.grid_sample, obvious.sampled, grid, "grid_sample", 2),
        "scatter_sum": Case(
            functools.partial(perception.scatter_sum, cells=cells),
            functools.partial(obvious.sorted_sum, cells=cells), (x, index), "scatter sum", 1,
        ),
        "scatter_max": Case(
            functools.partial(perception.scatter_max, cells=cells),
            functools.partial(obvious.largest, cells=cells), (x, index), "scatter amax", 1,
        ),
        "rotated_intersection": Case(perception.rotated_intersection, obvious.polygon_area, pair, "", 2),
        "nms": Case(suppress, loop, (flat, scores), "nms"),
        "heatmap_targets": Case(
            functools.partial(perception.heatmap_targets, **drawing), functools.partial(obvious.drawn, **drawing),
            objects,
        ),
        "deformable_attention": Case(
            lambda levels, *rest: perception.deformable_attention(levels, *rest), None, (levels, *attention),
            "deformable", 3,
        ),
        "lift_splat": Case(
            functools.partial(perception.lift_splat, cells=cells),
            functools.partial(obvious.lifted, cells=cells), lift, "lift_splat", 2,
        ),
        "match": Case(lambda cost: perception.match(cost).queries, assigned, (cost,), host=True),
        "chamfer_distance": Case(
            perception.chamfer_distance, None, (normal(BATCH, 1000, 3), normal(BATCH, 1000, 3)), "chamfer", 2
        ),
        "submanifold_conv": Case(sparse, dense, (normal(BATCH, capacity, 16), kernel), "submanifold", 2),
    }  # fmt: skip


def compiled(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """Returns a compiled function of the inputs: the value, with gradients where the case has them."""
    if not case.differentiable:
        return jax.jit(function)
    places = tuple(range(case.differentiable))

    def total(*inputs: Any) -> Any:
        value = function(*inputs)
        return (value * jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)).sum(), value

    return jax.jit(jax.value_and_grad(total, places, has_aux=True))


def milliseconds(run: Callable[..., Any], inputs: Sequence[Any], turns: int) -> float:
    """Returns the median time of a call, after a first one that compiles."""
    jax.block_until_ready(run(*inputs))
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def difference(case: Case, ours: Callable[..., Any], theirs: Callable[..., Any]) -> float:
    """Returns the largest difference of the values and gradients of both ways, relative to the largest value."""
    pairs = zip(jax.tree.leaves(ours(*case.inputs)), jax.tree.leaves(theirs(*case.inputs)), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(b).max(), 1)) for a, b in pairs)


def errors(start: str) -> tuple[str, str]:
    """Returns the largest errors of values and of gradients of golden items, as text."""
    rows = list(references.compared(GOLDEN, start)) if start else []
    found = {False: "-", True: "-"}
    for gradient in found:
        some = [row.largest_difference for row in rows if row.item.endswith(", gradient") == gradient]
        found[gradient] = f"{max(some):.1e}" if some else "-"
    return found[False], found[True]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if an operation differs from the obvious way by more than 1e-3."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perception", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=10, metavar="N", help="calls that are timed (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help="operations, separated by commas")
    args = parser.parse_args(argv)
    table = cases()
    names = args.only.split(",") if args.only else list(table)
    if unknown := [name for name in names if name not in table]:
        print(f"--only: {', '.join(unknown)} is unknown. Operations: {', '.join(table)}.", file=sys.stderr)
        return 2
    line = "{:22} {:>9} {:>9} {:>10} {:>12} {:>12}".format
    print(line("operation", "value", "gradient", "ms", "obvious, ms", "difference"), flush=True)
    failed = False
    for name in names:
        case = table[name]
        ours, other_ms, differs = compiled(case.run, case), "-", "-"
        took = milliseconds(ours, case.inputs, args.turns)
        if case.obvious is not None:
            theirs = case.obvious if case.host else compiled(case.obvious, case)
            other_ms = f"{milliseconds(theirs, case.inputs, args.turns):.2f}"
            largest = difference(case, ours, theirs)
            failed |= not largest <= 1e-3
            differs = f"{largest:.1e}"
        print(line(name, *errors(case.golden), f"{took:.2f}", other_ms, differs), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
