"""Examples: pytrees of numpy arrays, numbers and text without a batch dimension; their leaves, dtypes and content."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.data.text import content, is_text

type Example = PyTree
"""A pytree of numpy arrays, numbers and text."""
type Examples = PyTree
"""The same pytree with arrays `[rows, ...]`."""

FINGERPRINT_EXAMPLES = 32  # examples that a fingerprint reads at most, so that a run starts quickly
NUMERIC_KINDS = "biufc"  # numpy dtype kinds that an example may hold: bool, integers, floats, complex
JAX_NUMBERS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")  # names of further dtypes


def check_numbers(dtype: np.dtype, where: str) -> None:
    """Raises DataError for a dtype that devices do not support (objects, dates)."""
    if dtype.kind not in NUMERIC_KINDS and dtype.name not in JAX_NUMBERS:
        raise DataError(
            f"{where} has dtype {dtype}: allowed are bool, integers, floats, complex numbers, and str and bytes, which "
            "stay on the host. Convert it to numbers or text, or remove it."
        )


def row_of(array: np.ndarray, index: int) -> npt.ArrayLike:
    """Returns a copy of a row; a Python string is immutable."""
    row = array[index]
    return row if isinstance(row, str | bytes) else row.copy()


def evenly_spaced(size: int, most: int) -> list[int]:
    """Returns at most `most` evenly spaced integers from 0 to `size - 1`, with the first and the last."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64)).tolist()


def content_of(read: Callable[[], Example]) -> bytes:
    """Returns the bytes and the structure of an example. Training reports an unreadable example when it reads it."""
    try:
        found = leaves_with_path(read())
    except Exception:
        return b"cannot be read"
    parts = []
    for path, leaf in found:
        if is_text(leaf):
            parts.append(f"{path} text ".encode() + content(leaf))
        else:
            array = np.asarray(leaf)
            parts.append(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return b"".join(parts)


def leaves_with_path(tree: PyTree) -> Sequence[tuple[str, PyTree]]:
    """Returns the (path, leaf) pairs of a pytree, with paths such as `camera/0/image`."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/") or "the example", leaf) for path, leaf in found]


def sample_fingerprint(size: int, read: Callable[[int], Example]) -> str:
    """Returns a hash of the size and of up to `FINGERPRINT_EXAMPLES` evenly spaced examples.

    If a second reading of example 0 differs from the first, the text says so instead, since such examples cannot be
    compared.
    """

    def found_at(index: int) -> bytes:
        return content_of(lambda: read(index))

    if size and found_at(0) != found_at(0):
        return f"{size} examples that differ from one reading to the next"
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    for index in evenly_spaced(size, FINGERPRINT_EXAMPLES):
        found.update(found_at(index))
    return found.hexdigest()
