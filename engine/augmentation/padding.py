"""Removes the padding of an example before it is augmented, and restores it afterwards.

So augmentations see ragged arrays, and may add or remove elements as long as the padding has space for them.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example
from engine.data.source import BaseSource, inner_sources

if TYPE_CHECKING:
    from engine.data.ragged.fields import Ragged


class Padding(NamedTuple):
    """The padding of an example: the fields by axis, and the length of each axis."""

    ragged: "Ragged"
    lengths: tuple[int, ...]


def without_padding(source: BaseSource, example: Example) -> tuple[Example, Padding | None]:
    """Returns an example of a `Padded` source without padding, and its padding; that of another source as it is."""
    from engine.data.ragged.fields import ADDED
    from engine.data.ragged.padded import Padded

    if not isinstance(source, Padded):
        return example, None
    ragged, masks = source.ragged, example["mask"]
    found, lengths = {name: value for name, value in example.items() if name not in ADDED}, []
    for axis, names in ragged.axes.items():
        mask = masks if axis == "" else masks[axis]
        count = int(np.count_nonzero(mask))
        lengths.append(len(mask))
        for name in names:
            found[name] = found[name][:count]
    return found, Padding(ragged, tuple(lengths))


def padding_source(source: BaseSource) -> BaseSource | None:
    """Returns the source that pads the first example of a source, such as the first part of a mixture, or None."""
    from engine.data.ragged.padded import Padded

    while not isinstance(source, Padded):
        found = inner_sources(source)
        if not found:
            return None
        source = found[0]
    return source


def restore_padding(example: Example, padding: Padding | None) -> Example:
    """Returns an example with the padding that it had.

    Raises:
        DataError: an axis has more elements than its length, or fields of one axis differ.
    """
    if padding is None:
        return example
    found: dict[str, Any] = dict(example)
    masks: list[np.ndarray] = []
    for (axis, names), length in zip(padding.ragged.axes.items(), padding.lengths, strict=True):
        counts = {len(example[name]) for name in names}
        if len(counts) > 1 or max(counts) > length:
            texts = ", ".join(f"{name} {len(example[name])}" for name in names)
            raise DataError(
                f"after augmentation, {axis or 'the fields'} have {texts} elements, but all are padded to {length}."
                " Give a larger length to the padding, or limit what the augmentations add."
            )
        count = counts.pop()
        for name in names:
            found[name] = _padded(example[name], length)
        masks.append(np.arange(length) < count)
    ragged = padding.ragged
    found["mask"] = ragged.by_axis(masks)
    found["segment_ids"] = ragged.by_axis([mask.astype(np.int32) for mask in masks])
    found["positions"] = ragged.by_axis([np.arange(len(mask), dtype=np.int32) * mask for mask in masks])
    return found


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    found = np.zeros((length, *x.shape[1:]), x.dtype)
    found[: len(x)] = x
    return found
