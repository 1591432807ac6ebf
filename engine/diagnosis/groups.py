"""The layers for which a diagnosis gives one value: blocks of the model, named by their paths.

A layer of a `Stack` has the path of the stack and its index. A module in a list has its path up to the index. Any other
parameter belongs to its module, of which at most DEPTH parts of the path count.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from engine.training.model import Model

DEPTH = 2
EACH = "*"
"""Stands for the index of a layer of a stack, as in "decoder/*"."""
_LAYERS = "layers"  # attribute of a `Stack` that holds its layers


def group_of(path: Sequence[str]) -> str:
    """Returns the layer of a module, by the parts of its path."""
    number = next((i for i, part in enumerate(path) if part.isdigit()), None)
    return "/".join(path[:DEPTH] if number is None else path[: number + 1])


def stacked_group(path: Sequence[str]) -> str:
    """Returns the layers of a stack, such as "decoder/*", by the parts of the path of one of their parameters."""
    end = path.index(_LAYERS) if _LAYERS in path else len(path) - 1
    return "/".join([*path[:end], EACH]) if end else EACH


@dataclasses.dataclass(frozen=True)
class Groups:
    """The layers of a model."""

    paths: Mapping[str, str]
    """Path of a parameter -> its layer, or its layers as `stacked_group` names them."""
    leading: Mapping[str, int]
    """Path of a parameter of a stack -> number of leading dimensions that index the layers."""

    @classmethod
    def of(cls, model: Model) -> "Groups":
        """Returns the layers of a model."""
        stacked, found = model.stacked, {}
        for path in model.params:
            parts = path.split("/")
            found[path] = stacked_group(parts) if path in stacked else group_of(parts[:-1] or parts)
        return cls(found, stacked)

    def sums(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the sum of the values of each layer.

        Args:
            values: path of a parameter -> a number; for a parameter of a stack, one for each layer `[layers]`.
        """
        sums: dict[str, np.ndarray] = {}
        for path, value in values.items():
            group = self.paths[path]
            sums[group] = sums.get(group, 0) + np.asarray(value, np.float64)
        return {name: float(x) for group, value in sums.items() for name, x in each(group, value).items()}


def each(group: str, values: np.ndarray) -> dict[str, float]:
    """Returns the values by the names of the layers: of a stack `[layers]`, of any other group a number."""
    if EACH not in group.split("/"):
        return {group: float(values)}
    return {group.replace(EACH, str(i)): float(x) for i, x in enumerate(np.ravel(values))}
