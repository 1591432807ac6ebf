"""Text in examples: names, identifiers and other strings or bytes, which stay on the host.

A leaf of an example is text if it is a str, bytes, or an array of them. Training and evaluations drop text before a
batch goes to the devices. Predictions keep it (`engine/api/predictions.py`). In a batch, a text leaf is an array
`[rows, ...]` of NumPy's text, or of objects where the rows are Python strings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.base.types import PyTree
from engine.data.shared_arrays import allocate

TEXT_KINDS = "UST"  # numpy dtype kinds of text: str, bytes, StringDType


def is_text(leaf: object) -> bool:
    """Whether a leaf of an example or of a batch is text."""
    if isinstance(leaf, str | bytes):
        return True
    if not isinstance(leaf, np.ndarray):
        return False
    if leaf.dtype.kind == "O":  # an array without numbers, of which every item is text
        return leaf.size > 0 and all(map(is_text, leaf.flat))
    return leaf.dtype.kind in TEXT_KINDS


def has_text(example: PyTree) -> bool:
    """Whether an example or a batch holds text."""
    import jax

    return any(map(is_text, jax.tree.leaves(example)))


def without_text(tree: PyTree) -> PyTree:
    """Returns an example or a batch without its text.

    Entries of dicts are removed. Text elsewhere, as in a tuple, becomes None, which is a tree without leaves.
    """
    import jax

    if type(tree) is dict:
        return {key: without_text(value) for key, value in tree.items() if not is_text(value)}
    return jax.tree.map(lambda leaf: None if is_text(leaf) else leaf, tree)


def text_columns(batch: PyTree) -> dict[str, list[Any]]:
    """Returns path -> values of the rows, for each text leaf of a batch; a path is such as `meta/city`."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf) for path, leaf in found if is_text(leaf)}


def stack_leaves(*leaves: Any) -> np.ndarray:
    """Returns one leaf of several examples as an array `[rows, ...]`; rows of text need not have one shape.

    Raises:
        ValueError: numbers of different shapes, or numbers and text or other objects, such as None.
    """
    if not is_text(leaves[0]):
        try:
            stacked = np.stack(leaves, out=_shared(leaves))
        except TypeError as error:  # numbers and dates have no common dtype
            raise ValueError("numbers and objects") from error
        if stacked.dtype.kind in f"O{TEXT_KINDS}":  # NumPy turns numbers into text or objects
            raise ValueError("numbers and text or objects")
        return stacked
    if not all(map(is_text, leaves)):
        raise ValueError("text and numbers")
    rows = np.empty(len(leaves), object)  # NumPy's own arrays of bytes drop trailing zeros
    for row, leaf in enumerate(leaves):
        rows[row] = leaf
    return rows


def _shared(leaves: Sequence[Any]) -> np.ndarray | None:
    """Returns an array in shared memory for the leaves, in a worker process if they are large arrays of one dtype."""
    first = leaves[0]
    if type(first) is not np.ndarray or not first.dtype.isnative:
        return None
    array = allocate((len(leaves), *first.shape), first.dtype)
    return array if array is not None and all(np.asarray(leaf).dtype == array.dtype for leaf in leaves) else None


def text_paths(example: PyTree) -> list[str]:
    """Returns the path of each text leaf of an example, such as `meta/city`."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(example)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in found if is_text(leaf)]


def text_of(example: PyTree) -> dict[str, Any]:
    """Returns path -> value for each text leaf of an example."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(example)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found if is_text(leaf)}


def content(text: object) -> bytes:
    """Returns bytes that identify a text leaf, for fingerprints."""
    values = text.tolist() if isinstance(text, np.ndarray) else text
    return repr(values).encode("utf-8", "surrogatepass")
