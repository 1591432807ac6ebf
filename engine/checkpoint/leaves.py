"""Whether a stored state fits the state that a program wants: the sentence that names every leaf that differs.

Owns: the paths of a pytree's leaves and the comparison by shape and dtype. Does not own: reading either side
(`store.py`).

Terms. *Leaf*: one array of the state. *Path*: its keys joined by "/", "params/encoder/0/kernel"; the fields of an
optimizer's tuple count by name, as Orbax stores them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

SHOWN = 8  # leaves that an error names; a changed width touches hundreds


class Leaf(NamedTuple):
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {self.dtype}"


def leaves_of(tree: Any) -> dict[str, Leaf]:
    """Returns path -> Leaf for a pytree of things with `shape` and `dtype` (arrays, abstract arrays, metadata)."""
    import jax

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): Leaf(tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def difference(stored: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> str | None:
    """Returns the sentences about the leaves that differ, or None when the two fit.

    A leaf that one side lacks counts; so does another dtype, because a silent cast would not be the saved state.
    """
    paths = sorted({*stored, *wanted})
    differing = [path for path in paths if stored.get(path) != wanted.get(path)]
    if not differing:
        return None
    lines = [f"{path}: checkpoint {_side(stored, path)}, model {_side(wanted, path)}." for path in differing[:SHOWN]]
    if len(differing) > SHOWN:
        lines.append(f"... and {len(differing) - SHOWN} more.")
    return "\n".join([*lines, f"{len(differing)} of {len(paths)} leaves differ."])


def _side(side: Mapping[str, Leaf], path: str) -> str:
    return str(side[path]) if path in side else "has none"
