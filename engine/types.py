"""Types that every package uses. `PyTree` is the one alias of `Any`: JAX has no type for a tree of arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

type PyTree = Any
"""A tree of arrays, or of what stands for arrays: `jax.ShapeDtypeStruct`, shardings, metadata."""

type Json = bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None
"""What JSON can hold."""
