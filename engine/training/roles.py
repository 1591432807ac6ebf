"""The role of each parameter: embedding, matrix, head, norm, bias or convolution.

Weight decay, parameter groups, the decay of learning rates with depth, width scaling and optimizers for matrices follow
roles. A role is declared (`nnx.Param(value, role="embedding")`), or is that of a layer of Flax or of the engine, or
follows from what the loss does with the parameter (`traced_roles.py`):

- the table of an `nnx.Embed`, and what the loss looks up or only adds, such as positions and class tokens: embedding;
- the kernel of a convolution: convolution;
- parameters named `bias`: bias; other vectors and numbers: norm;
- what the loss multiplies with activations: matrix, or head if its result reaches no other matrix.

Roles that matter are stored with the run, and a resume keeps them; runs of earlier versions keep rules by numbers of
dimensions and names.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

import jax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from engine.base.errors import TaskError, did_you_mean
from engine.base.json_text import parse
from engine.config.setting import BIAS, CONVOLUTION, DECAYED, EMBEDDING, MATRIX, NORM, ROLES, listed_roles
from engine.parallel.rules import STACKED

ROLE = "role"
"""Metadata of a parameter that declares its role."""
SHOWN = 6  # parameters that a message names
VOCABULARY = "vocab"
"""Logical axis of the first and last layer of a language model."""
DECLARED, EARLIER = "declared", "the choice of an earlier version"
NO_MATRIX = "a row or a column"
"""Reason for a matrix that has only one row or column, which no optimizer orthogonalises."""

type Leaf = jax.Array | jax.ShapeDtypeStruct
type Names = Mapping[str, Sequence[str | None]]
type Dimensions = tuple[tuple[int, ...], tuple[int, ...]]
"""Dimensions of an array over which its product sums, and those of the result."""

_NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm)
_KERNELS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
_BIAS = re.compile(r"(.*_)?(bias|b)")


@dataclasses.dataclass(frozen=True)
class Roles:
    """The role of each trained parameter."""

    of: Mapping[str, str]
    """Path -> role; before the loss is traced, "matrix" stands for heads too."""
    reasons: Mapping[str, str]
    """Path -> what decided."""
    dimensions: Mapping[str, Dimensions] = dataclasses.field(default_factory=dict)
    """Path -> dimensions of its product, of matrices and heads; the others index matrices, such as layers."""
    is_traced: bool = False
    is_earlier: bool = False
    """Whether an earlier version started the run, whose Adam of Muon has a rate that follows no schedule."""

    @property
    def matrices(self) -> dict[str, Dimensions]:
        """Path -> dimensions of each hidden matrix."""
        found = {path: sizes for path, sizes in self.dimensions.items() if self.of[path] == MATRIX}
        return {path: sizes for path, sizes in found.items() if self.reasons.get(path) != NO_MATRIX}

    def numbers(self, params: Mapping[str, object]) -> dict[str, MuonDimensionNumbers | None]:
        """Returns path -> dimensions of the hidden matrices, as optimizers take them; None for another parameter.

        Args:
            params: path -> array or shape; optax passes the parameter of another group as an object without shape.
        """
        here = {path for path, x in params.items() if hasattr(x, "shape")} & self.matrices.keys()
        return {path: MuonDimensionNumbers(*self.matrices[path]) if path in here else None for path in params}

    def decays(self, kind: str, path: str) -> bool:
        """Returns whether weight decay acts on a parameter with the setting `optimizer.decay`."""
        return kind == "all" or (kind != "none" and self.of.get(path) in listed_roles(kind))

    def must_be_stored(self, earlier: "Roles") -> bool:
        """Returns whether a resume could decide otherwise from `earlier`, the rules of earlier versions."""
        return self.is_traced or any(
            (role in DECAYED) != (earlier.of[path] in DECAYED) for path, role in self.of.items()
        )

    def to_text(self) -> str:
        """Returns the roles as JSON, for the run directory."""
        stored = {"roles": self.of, "reasons": self.reasons, "dimensions": self.dimensions, "traced": self.is_traced}
        return json.dumps(stored, indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str, earlier: "Roles | None" = None) -> Self:
        """Returns the roles of `to_text`, or of the text of an earlier version, which had only the matrices of Muon.

        Args:
            text: the stored text.
            earlier: roles of the parameters by the rules of earlier versions, for such a text.

        Raises:
            ValueError: another text.
        """
        if '"muon"' in text and '"roles"' not in text:
            stored = parse(text, {"muon": {str: ([int], [int])}, "adam": {str: str}})
            found = {path: (tuple(a), tuple(b)) for path, (a, b) in stored["muon"].items()}
            roles = {**(earlier.of if earlier else {}), **dict.fromkeys(found, MATRIX)}
            return cls(roles, stored["adam"], found, is_traced=True)
        form = {"roles": {str: str}, "reasons": {str: str}, "dimensions": {str: ([int], [int])}, "traced": bool}
        stored = parse(text, form)
        found = {path: (tuple(a), tuple(b)) for path, (a, b) in stored["dimensions"].items()}
        return cls(stored["roles"], stored["reasons"], found, stored["traced"])

    def message(self, paths: Sequence[str], name: str, others: str) -> str:
        """Returns a sentence about an optimizer for matrices and some parameters; `others` updates the rest."""
        matrices, rest = ([path for path in paths if (path in self.matrices) == here] for here in (True, False))
        earlier = f" ({EARLIER}, by names)" if self.is_earlier else ""
        verb = "orthogonalises" if name == "Muon" else "updates"
        return (
            f"{name} {verb} {_listed(matrices)}; {others} updates {_listed(rest)}{earlier}. "
            "`convoy explain` lists all of them."
        )

    def table(self, params: Mapping[str, Leaf], decayed: Collection[str]) -> str:
        """Returns a line about each parameter: its role, its matrices, whether it decays, and what decided.

        Args:
            params: path -> array or shape.
            decayed: paths of the parameters to which weight decay applies.
        """
        lines = ["roles of the parameters (weight decay applies to those with a *):"]
        width, longest = max(map(len, params)), max(map(len, ROLES))
        for path, x in params.items():
            matrices = _matrices(x, self.dimensions[path]) if path in self.dimensions else ""
            mark, reason = "*" if path in decayed else " ", self.reasons.get(path, "")
            text = f"  {path:{width}}  {mark} {self.of.get(path, ''):{longest}}  {matrices:18}  {reason}"
            lines.append(text.rstrip())
        return "\n".join(lines)


def _matrices(x: Leaf, dimensions: Dimensions) -> str:
    sizes = [math.prod(x.shape[i] for i in found) for found in dimensions]
    count = math.prod(x.shape) // math.prod(sizes)
    return f"{f'{count} of ' if count > 1 else ''}{sizes[0]} x {sizes[1]}"


def declared_roles(variables: Mapping[str, nnx.Variable], modules: Mapping[str, nnx.Module]) -> dict[str, str]:
    """Returns path -> role of the parameters that declare it, or that belong to a layer of Flax.

    Args:
        variables: path -> parameter.
        modules: path -> module.

    Raises:
        TaskError: a declared role does not exist.
    """
    found = {}
    for path, variable in variables.items():
        role = variable.get_metadata().get(ROLE)
        if role is not None and role not in ROLES:
            allowed = f"Allowed: {', '.join(ROLES)}.{did_you_mean(str(role), ROLES)}"
            raise TaskError(f"{path}: the parameter declares role={role!r}. {allowed}")
        owner, _, name = path.rpartition("/")
        if role is None:
            role = _role_in(modules.get(owner), name)
        if role is not None:
            found[path] = role
    return found


def _role_in(module: nnx.Module | None, name: str) -> str | None:
    """Returns the role of a parameter of a layer of Flax; None for other modules and parameters."""
    if isinstance(module, nnx.Embed):
        return EMBEDDING
    kinds = {(nnx.Conv, nnx.ConvTranspose): CONVOLUTION, _NORMS: NORM, _KERNELS: MATRIX}
    for classes, role in kinds.items():
        if isinstance(module, classes):
            return BIAS if name == "bias" else role
    return None


def by_shape(path: str, dimensions: int, otherwise: str) -> str:
    """Returns the role of a parameter of which only the name and the number of dimensions are known.

    Args:
        path: its path.
        dimensions: number of its dimensions without those of stacked layers.
        otherwise: role of arrays of two or more dimensions.
    """
    if _BIAS.fullmatch(path.rpartition("/")[2]):
        return BIAS
    return otherwise if dimensions >= 2 else NORM


def untraced_roles(declared: Mapping[str, str], params: Mapping[str, Leaf], names: Names) -> Roles:
    """Returns the roles without a trace of the loss, in which "matrix" stands for heads and plain tables too.

    Args:
        declared: path -> role, as of `declared_roles`.
        params: path -> array or shape of each trained parameter.
        names: path -> logical axes.
    """
    of = {
        path: declared.get(path) or by_shape(path, own_dimensions(x, names.get(path)), MATRIX)
        for path, x in params.items()
    }
    return Roles(of, {path: DECLARED for path in of if path in declared})


def own_dimensions(x: Leaf, names: Sequence[str | None] | None) -> int:
    """Returns the number of dimensions of a parameter without those of stacked layers."""
    return len(x.shape) - sum(name in STACKED for name in names or ())


# The rules of earlier versions. Their runs keep them, so these names must not change.
_BATCHED = (*STACKED, "expert")  # logical axes of dimensions that index matrices
_OUTER = re.compile(r"(?:.*_)?(?:embed\w*|unembed\w*|head|logits|pos|positions?)")  # input and output layers


def earlier_roles(params: Mapping[str, Leaf], names: Names) -> Roles:
    """Returns the roles of a run of an earlier version: weight decay acts on parameters of two or more dimensions.

    Muon takes arrays of two dimensions whose path does not name an outer layer.

    Args:
        params: path -> array or shape.
        names: path -> logical axes.
    """
    found, of = {}, {}
    for path, x in params.items():
        axes = names.get(path, ())
        of[path] = MATRIX if own_dimensions(x, axes) >= 2 else BIAS
        batched = len(list(itertools.takewhile(lambda axis: axis in _BATCHED, axes)))
        is_outer = VOCABULARY in axes or any(_OUTER.fullmatch(part) for part in path.lower().split("/"))
        if (any(axis in STACKED for axis in axes) or not is_outer) and len(x.shape) - batched == 2:
            found[path] = ((batched,), (batched + 1,))
    return Roles(of, dict.fromkeys(of, EARLIER), found, is_earlier=True)


def _listed(paths: Iterable[str]) -> str:
    found = list(paths)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (", ".join(found[:SHOWN]) or "nothing") + more
