"""`Bundles`, the examples of several datasets in one batch, as a pytree.

A row of such a batch is a *bundle*: a fixed number of examples of each dataset. So everything that counts, splits or
weights rows works on bundles.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
from jax.tree_util import DictKey

from engine.base.types import PyTree


@jax.tree_util.register_pytree_with_keys_class
class Bundles(dict[str, PyTree]):
    """Name of a dataset -> its examples, arrays `[bundles, rows, ...]`, or `[bundles, ...]` if `rows` is 1.

    Args:
        parts: the examples of the datasets in this batch.
        rows: name of each dataset of the source -> its examples in a bundle.
    """

    def __init__(self, parts: Mapping[str, PyTree] | Iterable[Any] = (), rows: Mapping[str, int] | None = None):
        super().__init__(parts)
        self.rows: dict[str, int] = dict(rows or {})

    @property
    def absent(self) -> list[str]:
        """Names of the datasets of the source of which this batch has no examples."""
        return [name for name in self.rows if name not in self]

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, PyTree]], Hashable]:
        """Returns the examples with the names of their datasets, and these names with all numbers of rows."""
        names = tuple(sorted(self))
        return [(DictKey(name), self[name]) for name in names], (names, tuple(sorted(self.rows.items())))

    @classmethod
    def tree_unflatten(cls, names_and_rows: Any, parts: Iterable[PyTree]) -> "Bundles":
        """Returns the bundles of these parts."""
        names, rows = names_and_rows
        return cls(zip(names, parts, strict=True), dict(rows))
