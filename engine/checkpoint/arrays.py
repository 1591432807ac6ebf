"""Writes and reads the arrays of a state with Orbax, as uncompressed zarr2 in OCDBT. No other file calls Orbax.

Orbax's managers and checkpointers are not used: their processes wait at device barriers, without a timeout, for a
process whose storage fails (two processes and one full disk: 20 minutes and longer), and a manager lists a step whose
save has failed. The handler used here has no barrier: each process writes its part, and the primary finishes when all
parts are written. `benchmarks/save_stall.py` compares the formats.
"""

import asyncio
import contextlib
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import CheckpointError, ConvoyError
from engine.base.types import PyTree
from engine.storage.mounts import address_of_copy
from engine.storage.plain_path import plain_path

if TYPE_CHECKING:
    import jax
    from etils import epath
    from orbax.checkpoint import PyTreeCheckpointHandler


def copied_on_cpu(state: PyTree) -> tuple[bool, PyTree]:
    """Returns (True, copies of the arrays) on CPU, otherwise (False, the arrays): Orbax copies from an accelerator.

    With a copy, the next step can donate the arrays of the loop. Without it, JAX on CPU would copy the whole state
    while it is written, which takes twice as long.
    """
    import jax

    if jax.default_backend() != "cpu":
        return False, state
    return True, jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)


def write(folder: Path, state: PyTree, copied: Callable[[], None]) -> None:
    """Writes this process's part of a state, in any thread; returns when it is on disk.

    Args:
        folder: created if it is missing; its parent must exist.
        state: pytree of arrays.
        copied: called once the arrays may be donated or deleted; before that, Orbax reads them.

    Raises:
        Exception: any error of Orbax or the disk.
    """
    handler = _handler()
    import orbax.checkpoint as ocp

    folder.mkdir(exist_ok=True)  # not its parents: if the disk is no longer mounted, nothing may be saved in its place
    with _orbax_path(folder) as path:
        loop = asyncio.new_event_loop()
        try:
            parts = loop.run_until_complete(handler.async_save(path, args=ocp.args.PyTreeSave(state)))
        finally:
            loop.close()
        copied()
        for part in parts or ():
            part.result()


def finish(folder: Path) -> None:
    """Merges the parts of all processes; one process calls it, when all have written. Raises like `write`."""
    with _orbax_path(folder) as path:
        _handler().finalize(path)


def describe(folder: Path) -> PyTree:
    """Returns the stored tree, with Orbax's metadata (shape, dtype) as leaves. Raises like `write`."""
    if (address := address_of_copy(folder)) is not None:
        from engine.checkpoint import bucket_arrays

        return bucket_arrays.describe(folder, address)
    with _orbax_path(folder) as path:
        return _handler().metadata(path).tree


def read(folder: Path, abstract_state: PyTree, *, partial: bool = False) -> PyTree:
    """Returns a stored state; each process reads what its devices hold. Raises like `write`.

    Args:
        folder: folder of a finished state.
        abstract_state: the stored arrays, as jax.ShapeDtypeStruct with the requested shardings.
        partial: allow further stored arrays, which are not read.
    """
    if (address := address_of_copy(folder)) is not None:
        from engine.checkpoint import bucket_arrays

        return bucket_arrays.read(folder, address, abstract_state)
    handler = _reader()
    import jax
    import orbax.checkpoint as ocp

    arguments = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.PyTreeRestore(item=abstract_state, restore_args=arguments, partial_restore=partial)
    with _orbax_path(folder) as path:
        return jax.block_until_ready(handler.restore(path, args=args))


def read_smallest(folder: Path) -> tuple[str, "jax.Array"]:
    """Returns the path and the value of the smallest stored array, on a device of this process. Raises like `write`."""
    import jax
    import orbax.checkpoint as ocp

    tree = describe(folder)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    key, smallest = min(leaves, key=lambda leaf: math.prod(leaf[1].shape) * leaf[1].dtype.itemsize)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.ShapeDtypeStruct(smallest.shape, smallest.dtype, sharding=sharding)
    alone = jax.tree.map(lambda leaf: wanted if leaf is smallest else ocp.PLACEHOLDER, tree)
    (array,) = (leaf for leaf in jax.tree.leaves(read(folder, alone)) if leaf is not ocp.PLACEHOLDER)
    return jax.tree_util.keystr(key, simple=True, separator="/"), array


def error_text(error: BaseException) -> str:
    """Returns the message of an error of Orbax or the disk in one line, as TensorStore's messages are very long.

    Errors of the engine are sentences, and are returned as they are.
    """
    if isinstance(error, ConvoyError):
        return str(error)
    if code := _SYSTEM_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # at the end of TensorStore's errors


@contextlib.contextmanager
def reraise(sentence: Callable[[str], str]) -> Iterator[None]:
    """Raises errors of Orbax or the disk as CheckpointError; `sentence` turns the text of the error into a message."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(sentence(error_text(error))) from error


class _OrbaxFilter(logging.Filter):
    """Drops log records of Orbax: users get a CheckpointError instead. Verbose absl logging shows them.

    It also drops asyncio's records about Orbax's remaining writes after one has failed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        verbose = logging.getLogger("absl").getEffectiveLevel() <= logging.INFO
        from_asyncio = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
        from_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
        return verbose or not (from_asyncio or from_orbax)


_FILTER = _OrbaxFilter()


@functools.cache
def _drop_late_results() -> None:
    """Hides errors of writes that TensorStore completes after a failed write has closed Orbax's event loop."""
    former = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            former(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _orbax_path(folder: Path) -> Iterator["epath.Path"]:
    """Yields the path of a folder in Orbax's type, for the time of a call."""
    from etils import epath

    with plain_path(folder) as path:
        yield epath.Path(path)


def _handler() -> "PyTreeCheckpointHandler":
    """Returns the handler. Imports Orbax (0.4 s, with JAX) at the first call."""
    import orbax.checkpoint as ocp

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_FILTER)
    _drop_late_results()
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def _reader() -> "PyTreeCheckpointHandler":
    """Returns the handler for restores, which does not read Orbax's file of each process in `array_metadatas`.

    Those files restore typed random keys, which a state has none of. Otherwise each of N processes reads N files.
    """
    _handler()
    import jax
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry((jax.Array, handlers.ArrayHandler(array_metadata_store=None)))
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
