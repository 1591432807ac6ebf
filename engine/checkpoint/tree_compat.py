"""Compares a stored state with the state that a program needs, leaf by leaf, and reshapes stacks of layers.

The path of a leaf is its keys joined by "/", "params/encoder/0/kernel"; fields of an optimizer's named tuple are keys,
as in Orbax. A *fold* is the leading dimensions of a stacked array: `[layers]`, or `[repeats, layers of a repeat]` with
pipeline parallelism. The order of the layers is the same.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.base.errors import CheckpointError
from engine.base.types import PyTree

if TYPE_CHECKING:
    import jax
    from jax.tree_util import KeyPath

SHOWN = 8  # leaves that an error names; a changed width affects hundreds


class Leaf(NamedTuple):
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {self.dtype}"


def leaves_of(tree: PyTree) -> dict[str, Leaf]:
    """Returns path -> Leaf for a pytree whose leaves have `shape` and `dtype` (arrays, abstract arrays, metadata)."""
    import jax

    return {
        _key(path): Leaf(tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


SCHEDULE_FREE = "/base_optimizer_state/"
"""In the paths of the state of a schedule-free optimizer of optax."""
type Partial = Collection[str] | None
"""None: all stored arrays are wanted. Else others are not read, and these sections may lack arrays that are wanted."""


def without_missing(abstract_state: PyTree, stored: Mapping[str, Leaf], partial: Partial, step: Path) -> PyTree:
    """Returns an abstract state without arrays that may be missing and are. Raises as `check_averages`."""
    if not partial:
        return abstract_state
    check_averages(stored, step)
    parts = {name: {p: x for p, x in abstract_state[name].items() if f"{name}/{p}" in stored} for name in partial}
    return {**abstract_state, **parts}


def check_averages(stored: Mapping[str, Leaf], step: Path) -> None:
    """Checks that the averages of a schedule-free optimizer are stored.

    Raises:
        CheckpointError: they are not, so that the training weights would be taken for the trained model.
    """
    if any(SCHEDULE_FREE in path for path in stored) and not any(path.startswith("ema/") for path in stored):
        raise CheckpointError(
            f"{step}: an earlier version of Convoy has saved this checkpoint of a schedule-free optimizer without the "
            "averaged weights, which are the trained model. Resume the run, if it has ended with a larger train.total: "
            "its next checkpoint has them."
        )


def difference(stored: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> str | None:
    """Returns sentences about the leaves that differ, parameters first, or None if all are equal.

    A leaf that is missing on one side differs. So does a leaf of another dtype, because a silent cast would change it.
    """
    paths = sorted({*stored, *wanted}, key=lambda path: (not path.startswith("params/"), path))
    differing = [path for path in paths if stored.get(path) != wanted.get(path)]
    if not differing:
        return None
    lines = [f"{path}: checkpoint {_side(stored, path)}, model {_side(wanted, path)}." for path in differing[:SHOWN]]
    if len(differing) > SHOWN:
        lines.append(f"... and {len(differing) - SHOWN} more.")
    new, gone = (sum(path not in side for path in differing) for side in (stored, wanted))
    kinds = f"{new} new in the model, {gone} only in the checkpoint, {len(differing) - new - gone} changed"
    return "\n".join([*lines, f"{len(differing)} of {len(paths)} leaves differ: {kinds}."])


def other_folds(
    stored: Mapping[str, Leaf], wanted: Mapping[str, Leaf], stacked: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Returns the leaves that differ only by their fold: path -> dimensions of the stored and of the wanted fold.

    Args:
        stored: leaves of the checkpoint.
        wanted: leaves of the program.
        stacked: path of a stacked parameter -> dimensions of its fold. Paths of the optimizer's or the EMA's leaves for
            a parameter end with the path of the parameter.
    """
    found = {}
    for path, want in wanted.items():
        have, keys = stored.get(path), path.split("/")
        to = next((n for i in range(len(keys)) if (n := stacked.get("/".join(keys[i:])))), 0)
        if not to or have is None or have == want or have.dtype != want.dtype:
            continue
        of = len(have.shape) - len(want.shape) + to
        if of > 0 and have.shape[of:] == want.shape[to:] and math.prod(have.shape) == math.prod(want.shape):
            found[path] = (of, to)
    return found


def with_stored_folds(
    abstract_state: PyTree, stored: Mapping[str, Leaf], folds: Mapping[str, tuple[int, int]]
) -> PyTree:
    """Returns the abstract state with the leaves of `folds` as they are stored, each on its final devices."""
    import jax

    def leaf(path: "KeyPath", want: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        key = _key(path)
        return _stored_fold(want, stored[key].shape, *folds[key]) if key in folds else want

    return jax.tree.map_with_path(leaf, abstract_state)


def with_wanted_folds(state: PyTree, abstract_state: PyTree, folds: Mapping[str, tuple[int, int]]) -> PyTree:
    """Returns a state in the shapes that the program wants, from one in its stored shapes."""
    import jax

    def leaf(path: "KeyPath", x: jax.Array, want: jax.ShapeDtypeStruct) -> jax.Array:
        if _key(path) not in folds:
            return x
        x = jax.jit(lambda x: x.reshape(want.shape), out_shardings=want.sharding)(x)
        return jax.block_until_ready(x)  # one array at a time, so that memory for one copy suffices

    return jax.tree.map_with_path(leaf, state, abstract_state)


def _stored_fold(want: "jax.ShapeDtypeStruct", shape: tuple[int, ...], of: int, to: int) -> "jax.ShapeDtypeStruct":
    """Returns an abstract array in its stored shape, its layers on the mesh axes of the wanted fold if they divide."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = want.sharding
    if isinstance(sharding, NamedSharding):
        spec = [*sharding.spec, *[None] * (len(want.shape) - len(sharding.spec))]
        axes = tuple(jax.tree.leaves(spec[:to]))
        divides = shape[of - 1] % math.prod(sharding.mesh.shape[axis] for axis in axes) == 0
        fold = [*[None] * (of - 1), axes if axes and divides else None]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*fold, *spec[to:]))
    return jax.ShapeDtypeStruct(shape, want.dtype, sharding=sharding)


def _key(path: "KeyPath") -> str:
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def _side(side: Mapping[str, Leaf], path: str) -> str:
    return str(side[path]) if path in side else "has none"
