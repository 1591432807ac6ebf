"""Types that every package uses. `PyTree` is the only alias of `Any`: JAX has no type for a tree of arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

type PyTree = Any
"""A tree of arrays, or of objects in their place: `jax.ShapeDtypeStruct`, shardings, metadata."""

type Json = bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None
"""A value that JSON can represent."""


class Memory(Protocol):
    """A memory of a device."""

    @property
    def kind(self) -> str: ...


class Device(Protocol):
    """A `jax.Device`, which type checkers do not see as a class."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    def default_memory(self) -> Memory: ...
    def addressable_memories(self) -> Sequence[Memory]: ...
    def memory_stats(self) -> Mapping[str, int] | None: ...


def defined_with_or_after(cls: type, member: str, other: str) -> bool:
    """Returns whether the class that defines `member` is, or derives from, the class that defines `other`."""
    of_member, of_other = (
        next((i for i, base in enumerate(cls.__mro__) if name in vars(base)), -1) for name in (member, other)
    )
    return of_member <= of_other
