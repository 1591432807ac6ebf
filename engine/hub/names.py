"""Tables of names: which arrays of another program's weights form an array of this model.

*Here* is the model, whose paths have slashes ("layer1/0/conv1/kernel"); *there* are the weights, whose names have dots
("layer1.0.conv1.weight"). A module states its table in the attribute `pretrained`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from engine.base.errors import TaskError

ATTRIBUTE = "pretrained"
"""Attribute of a module that holds its Names."""
LAYER = "{layer}"
LEAVES: Mapping[str, str] = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "table": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Name of a variable here -> its name in PyTorch."""
_PIECE = re.compile(r"([^\[\]\s]*)(?:\[(\d+) of (\d+)\])?")
_ORDER = re.compile(r"([a-z1]+)->([a-z1]+)")
ONE = "1"
"""Stands for a dimension of size 1 in an order."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """An array there, or one of `count` equal parts along its first dimension."""

    name: str
    part: int = 0
    count: int = 1

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name}[{self.part} of {self.count}]"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How one array here is formed: its pieces are joined along their first dimension, then transposed.

    Attributes:
        pieces: arrays there. Their names contain LAYER if the array here stacks those of several layers.
        order: dimension there of each dimension here, without the dimensions of layers; -1 for a dimension of size 1
            that is only here.
        ones: dimensions of size 1 that are only there.
    """

    pieces: tuple[Piece, ...]
    order: tuple[int, ...]
    ones: tuple[int, ...] = ()

    def there[T](self, values: Sequence[T], one: T) -> list[T]:
        """Returns one value for each dimension there, for values of the dimensions here; `one` for those only there."""
        common = {there: value for there, value in zip(self.order, values, strict=True) if there >= 0}
        return [common.get(dimension, one) for dimension in range(len(common) + len(self.ones))]

    def array_here(self, there: np.ndarray) -> np.ndarray:
        """Returns an array of one layer there, or a part of it, with the dimensions here."""
        sizes = [1 if dimension < 0 else there.shape[dimension] for dimension in self.order]
        return there.transpose(*self._common, *self.ones).reshape(sizes)

    def array_there(self, here: np.ndarray) -> np.ndarray:
        """Returns the reverse of `array_here`."""
        shape = self.there(here.shape, 1)
        squeezed = here.reshape(
            [size for size, dimension in zip(here.shape, self.order, strict=True) if dimension >= 0]
        )
        return squeezed.transpose(np.argsort(self._common)).reshape(shape)

    @property
    def _common(self) -> tuple[int, ...]:
        """The dimensions there that are here, too, in the order here."""
        return tuple(dimension for dimension in self.order if dimension >= 0)

    def of_layer(self, layer: int) -> tuple[Piece, ...]:
        """Returns the pieces for a layer of a stack."""
        return tuple(dataclasses.replace(p, name=p.name.replace(LAYER, str(layer))) for p in self.pieces)

    @property
    def is_stacked(self) -> bool:
        """Whether the names of the pieces depend on the layer."""
        return any(LAYER in piece.name for piece in self.pieces)

    def __str__(self) -> str:
        return " + ".join(map(str, self.pieces))


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a module's arrays in the weights of other programs.

    A path without an entry keeps its words: "layer1/0/bn1/scale" is "layer1.0.bn1.weight". Kernels `[in, out]` are
    `[out, in]` there, and those of convolutions `[*window, in, out]` are `[out, in, *window]`.

    An entry of `table` maps a path here, as a regular expression for the whole path of a module or of an array, to the
    name there, with `\\1` for a group of the expression. The first entry that matches decides:

    | name there | meaning |
    |---|---|
    | `layers.\\1.attn.proj` | another name |
    | `layers.{layer}.mlp.up` | the arrays of all layers of an `engine.layers.Stack` |
    | `attn.qkv[0 of 3]` | the first of three equal parts along the first dimension |
    | `gate + up` | two arrays, joined along the first dimension |
    | `table: ab->ba` | another order of the dimensions, there -> here |
    | `scale: a11->a` | 1 is a dimension of size 1 that the other side lacks |

    Args:
        table: as above.
        heads: paths of modules that stay random if their shapes differ, such as the classifier.
        prefixes: of all names in some files, such as "model.": the first one that the weights have is used.
    """

    table: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: Sequence[str] = ()
    prefixes: Sequence[str] = ("",)

    def __hash__(self) -> int:  # NNX compiles for each structure of a module, of which this may be a part
        return hash((tuple(self.table.items()), tuple(self.heads), tuple(self.prefixes)))

    def origin(self, path: str, rank: int) -> Origin:
        """Returns the origin of an array.

        Args:
            path: of the array, from the module.
            rank: its number of dimensions, without those of layers.

        Raises:
            TaskError: an entry of the table cannot be read.
        """
        text, suffix = self._entry(path)
        return parse(text, path, rank, suffix)

    def is_head(self, path: str) -> bool:
        """Whether an array belongs to a head."""
        return any(f"{path}/".startswith(f"{head}/") for head in self.heads)

    def _entry(self, path: str) -> tuple[str, str]:
        """Returns the text of the entry for an array, and the end of its name there."""
        module, _, leaf = path.rpartition("/")
        suffix = f".{LEAVES.get(leaf, leaf)}"
        for expression, name in self.table.items():
            if module and (found := re.fullmatch(expression, module)):
                return found.expand(name).replace("/", "."), suffix
            if found := re.fullmatch(expression, path):
                return found.expand(name).replace("/", "."), ""
        return module.replace("/", "."), suffix


def parse(text: str, path: str, rank: int, suffix: str = "", where: str = ATTRIBUTE) -> Origin:
    """Returns the origin that the text of an entry names, as described in `Names`.

    Args:
        text: the entry.
        path: of the array here; kernels are transposed if the entry gives no order.
        rank: its number of dimensions, without those of layers.
        suffix: follows each name.
        where: of the entry, for errors.

    Raises:
        TaskError: the entry cannot be read.
    """
    words, _, given = text.partition(":")
    pieces = [_PIECE.fullmatch(word.strip()) for word in words.split(" + ")]
    found = [Piece(f"{m[1]}{suffix}".lstrip("."), int(m[2] or 0), int(m[3] or 1)) for m in pieces if m]
    if len(found) < len(pieces) or any(piece.part >= piece.count for piece in found):
        raise TaskError(
            f"{where}: {path}: found {text!r}. Allowed: 'name', 'name[0 of 3]', 'name + name', 'name: ab->ba'."
        )
    if given:
        return Origin(tuple(found), *_order(given.strip(), path, rank, where))
    return Origin(tuple(found), usual_order(path.rpartition("/")[2], rank))


def usual_order(leaf: str, rank: int) -> tuple[int, ...]:
    """Returns the dimension in PyTorch of each dimension of a variable, by the variable's name."""
    if leaf != "kernel" or rank < 2:
        return tuple(range(rank))
    return (*range(2, rank), 1, 0)


def _order(text: str, path: str, rank: int, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns `order` and `ones` of an Origin."""
    found = _ORDER.fullmatch(text)
    there, here = (found[1], found[2]) if found else ("", "")
    letters = there.replace(ONE, "")
    if sorted(letters) != sorted(here.replace(ONE, "")) or len(set(letters)) < len(letters) or len(here) != rank:
        raise TaskError(
            f"{where}: {path}: found the order {text!r} for {rank} dimensions. Allowed: such as 'ab->ba', or 'a11->a'."
        )
    ones = tuple(dimension for dimension, letter in enumerate(there) if letter == ONE)
    return tuple(-1 if letter == ONE else there.index(letter) for letter in here), ones
