"""The weights of a state as one safetensors file, for use outside of training.

Owns: which arrays go in and under which names. Does not own: checkpoints that training goes on from (`store.py`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.errors import CheckpointError


def export_safetensors(state: Mapping[str, Any], path: str | os.PathLike, use_ema: bool = True) -> list[str]:
    """Writes the parameters and the carried values of a state; returns their names.

    A name is the variable's path, "encoder/0/kernel". The file replaces an older one in one piece. With several
    processes all call this, and the first one writes.

    Args:
        state: a train state.
        path: the file.
        use_ema: write the averaged weights in place of the trained ones where the state has them.

    Raises:
        CheckpointError: the file cannot be written.
    """
    import jax
    from safetensors.numpy import save_file

    arrays = {**state["params"], **(state["ema"] if use_ema and "ema" in state else {}), **state["carried"]}
    whole = {name: _whole(array) for name, array in sorted(arrays.items())}
    if jax.process_index() == 0:
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(whole, beside)
            os.replace(beside, path)
        except Exception as error:  # safetensors has an error class of its own for what the disk refuses
            beside.unlink(missing_ok=True)
            raise CheckpointError(f"{path}: the weights cannot be exported ({error}). Choose another place.") from error
    return list(whole)


def _whole(array: Any) -> np.ndarray:
    """An array with all of its shards, on this host."""
    if not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array, order="C")  # safetensors writes memory as it lies
