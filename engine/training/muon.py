"""Which parameters Muon orthogonalises: the hidden matrices, each layer of a stack and each expert by itself.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) is for hidden matrices; its author gives embeddings, the
output layers and vectors to Adam. What is a matrix follows from the loss, not from names (`muon_choice.py`). The
choice is stored with the run, and a resume keeps it; runs of earlier versions keep a choice that follows names.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Self

import jax
from optax.contrib import MuonDimensionNumbers

from engine.base.json_text import parse
from engine.parallel.rules import STACKED

SHOWN = 6  # parameters that a message names
EARLIER = "the choice of an earlier version, by names"
EMBEDDING, OUTPUT, SMALL = "an embedding", "an output layer", "a row or a column"  # reasons for Adam
NAMED_OUTER = "vocab"
"""Logical axis of the first and last layer of a language model."""

type Leaf = jax.Array | jax.ShapeDtypeStruct
type Dimensions = tuple[tuple[int, ...], tuple[int, ...]]
"""Dimensions of an array over which its product sums, and those of the result."""


@dataclasses.dataclass(frozen=True)
class MuonChoice:
    """Which parameters Muon orthogonalises, and why Adam updates the others."""

    matrices: Mapping[str, Dimensions]
    reasons: Mapping[str, str]
    is_earlier: bool = False
    """Whether the run was started by a version that chose by names, whose `adam_learning_rate` follows no schedule."""

    def numbers(self, params: Mapping[str, object]) -> dict[str, MuonDimensionNumbers | None]:
        """Returns path -> dimensions of the matrices that Muon orthogonalises; None for a parameter of Adam.

        Args:
            params: path -> array or shape; optax passes the parameter of another group as an object without shape.
        """
        here = {path for path, x in params.items() if hasattr(x, "shape")} & self.matrices.keys()
        return {path: MuonDimensionNumbers(*self.matrices[path]) if path in here else None for path in params}

    def to_text(self) -> str:
        """Returns the choice as JSON, for the run directory."""
        return json.dumps({"muon": self.matrices, "adam": self.reasons}, indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Returns the choice of `to_text`. Raises ValueError for another text."""
        stored = parse(text, {"muon": {str: ([int], [int])}, "adam": {str: str}})
        return cls({path: (tuple(a), tuple(b)) for path, (a, b) in stored["muon"].items()}, stored["adam"])

    def message(self, paths: Sequence[str], others: str) -> str:
        """Returns a sentence about some parameters; `others` names what updates those that are no matrices."""
        muon, adam = ([path for path in paths if (path in self.matrices) == here] for here in (True, False))
        earlier = f" ({EARLIER})" if self.is_earlier else ""
        return (
            f"Muon orthogonalises {_listed(muon)}; {others} updates {_listed(adam)}{earlier}. "
            "`convoy explain` lists all of them."
        )

    def table(self, params: Mapping[str, Leaf], others: str) -> str:
        """Returns a line about each parameter: its matrix, or why it is none."""
        count = len(self.matrices.keys() & params.keys())
        lines = [f"Muon orthogonalises {count} of {len(params)} parameters; {others} updates the others:"]
        for path, x in params.items():
            if path in self.matrices:
                sizes = [math.prod(x.shape[i] for i in found) for found in self.matrices[path]]
                count = math.prod(x.shape) // math.prod(sizes)
                text = f"Muon  {f'{count} of ' if count > 1 else ''}{sizes[0]} x {sizes[1]}"
            else:
                text = f"Adam  {EARLIER if self.is_earlier else self.reasons.get(path, '')}".rstrip()
            lines.append(f"  {path}: {text}")
        return "\n".join(lines)


# The choice of earlier versions. Their runs keep it, so these names must not change.
_BATCHED = (*STACKED, "expert")  # logical axes of dimensions that index matrices
_OUTER = re.compile(r"(?:.*_)?(?:embed\w*|unembed\w*|head|logits|pos|positions?)")  # input and output layers


def earlier_choice(params: Mapping[str, Leaf], names: Mapping[str, Sequence[str | None]]) -> MuonChoice:
    """Returns the choice of earlier versions: arrays of two dimensions whose path does not name an outer layer.

    Args:
        params: path -> array or shape.
        names: path -> logical axes.
    """
    matrices = {}
    for path, x in params.items():
        axes = names.get(path, ())
        batched = len(list(itertools.takewhile(lambda axis: axis in _BATCHED, axes)))
        is_outer = NAMED_OUTER in axes or any(_OUTER.fullmatch(part) for part in path.lower().split("/"))
        if (any(axis in STACKED for axis in axes) or not is_outer) and len(x.shape) - batched == 2:
            matrices[path] = ((batched,), (batched + 1,))
    return MuonChoice(matrices, {}, is_earlier=True)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return (", ".join(paths[:SHOWN]) or "nothing") + more
