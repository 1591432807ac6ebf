"""Exports the weights of a state as one safetensors file, for use outside of training."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.base.errors import CheckpointError
from engine.base.files import remove, temporary_path
from engine.base.types import PyTree
from engine.cluster import group

if TYPE_CHECKING:
    import jax


def export_safetensors(state: Mapping[str, PyTree], path: str | os.PathLike[str], use_ema: bool = True) -> list[str]:
    """Writes the parameters and the model state (such as batch statistics); returns their names.

    A name is the variable's path, "encoder/0/kernel". An existing file is replaced atomically. All processes call this;
    the primary writes.

    Args:
        state: a train state.
        path: the file.
        use_ema: write the averaged weights instead of the trained weights if the state has them.

    Raises:
        CheckpointError: the file cannot be written.
    """
    arrays = {**state["params"], **(state["ema"] if use_ema and "ema" in state else {}), **state["carried"]}
    whole = {name: _whole(array) for name, array in sorted(arrays.items())}
    if group.is_primary():
        write_safetensors(whole, Path(path))
    return list(whole)


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays of this host to a file, which is replaced atomically. Raises CheckpointError for disk errors."""
    from safetensors.numpy import save_file

    folder = temporary_path(path)  # safetensors makes a temporary file too, whose name is random
    try:
        folder.mkdir()
        save_file(dict(arrays), folder / "weights", None if metadata is None else dict(metadata))
        os.replace(folder / "weights", path)
    except Exception as error:  # safetensors raises its own error class for disk errors
        raise CheckpointError(f"{path}: the weights cannot be exported ({error}). Choose another path.") from error
    finally:
        remove(folder)


def _whole(array: "jax.Array") -> np.ndarray:
    """Returns an array with all its shards, on this host."""
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array, order="C")  # safetensors writes the bytes in memory order
