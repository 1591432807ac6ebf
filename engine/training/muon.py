"""Which parameters Muon orthogonalises: the hidden matrices, each layer of a stack and each expert by itself.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) is for hidden matrices; its author gives embeddings, the
output layer and vectors to Adam. `optax.contrib.muon` alone decides by the number of dimensions, so that it would
orthogonalise embeddings and the stacked scales of a norm, and give the stacked matrices to Adam.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import jax
from optax.contrib import MuonDimensionNumbers

from engine.parallel.rules import STACKED

BATCHED = (*STACKED, "expert")
"""Logical axes of dimensions that index matrices."""
SHOWN = 6  # parameters that a message names

_OUTER = re.compile(r"(?:.*_)?(?:embed\w*|unembed\w*|head|logits|pos|positions?)")
"""Names of input and output layers."""

type Leaf = jax.Array | jax.ShapeDtypeStruct


def dimension_numbers(
    params: Mapping[str, Leaf], names: Mapping[str, Sequence[str | None]]
) -> dict[str, MuonDimensionNumbers | None]:
    """Returns path -> dimensions of the matrices that Muon orthogonalises; None for a parameter of Adam.

    Args:
        params: path -> array or shape; optax passes a masked parameter as an object without shape.
        names: path -> logical axes.
    """
    return {path: _of_parameter(path, len(getattr(x, "shape", ())), names.get(path, ())) for path, x in params.items()}


def _of_parameter(path: str, dimensions: int, axes: Sequence[str | None]) -> MuonDimensionNumbers | None:
    batched = len(list(itertools.takewhile(lambda axis: axis in BATCHED, axes)))
    is_outer = "vocab" in axes or any(_OUTER.fullmatch(part) for part in path.lower().split("/"))
    is_hidden = any(axis in STACKED for axis in axes) or not is_outer
    return MuonDimensionNumbers(batched, batched + 1) if is_hidden and dimensions - batched == 2 else None


def message(params: Mapping[str, Leaf], names: Mapping[str, Sequence[str | None]]) -> str:
    """Returns a sentence about the parameters of Muon and of Adam."""
    numbers = dimension_numbers(params, names)
    muon, adam = ([path for path in params if (numbers[path] is None) == is_adam] for is_adam in (False, True))
    return (
        f"Muon orthogonalises {_listed(muon)}; Adam updates {_listed(adam)}. "
        "optimizer.muon_weight_dimension_numbers changes this."
    )


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return (", ".join(paths[:SHOWN]) or "nothing") + more
