"""The arrays of a state in a folder, by Orbax's handler of pytrees: written, finished, described, read.

Owns: the format, and what Orbax raises or says. Does not own: which folder, when it counts, and who waits how long
(`saving.py`, `store.py`). Nothing else in the engine calls Orbax.

Orbax's own managers and checkpointers are not used. Their processes meet at barriers of the devices, in which a process
whose storage fails is waited for without a bound (with two processes and one full disk: 20 minutes and longer), and a
manager lists a step whose save failed. Its handler has no barrier: each process writes its part, and the first one
finishes when all parts are there.

Arrays are stored as uncompressed zarr2 in OCDBT: `benchmarks/save_stall.py` compares the formats.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.config.errors import CheckpointError


def write(folder: Path, state: Any, copied: Callable[[], None]) -> None:
    """Writes this process's part of a state, in any thread; returns when it is on disk.

    Args:
        folder: made if it is missing, by whichever process comes first; what it lies in is there.
        state: pytree of arrays.
        copied: called once the arrays may be donated or deleted; before that, Orbax reads them.

    Raises:
        Exception: whatever Orbax or the disk raises.
    """
    ocp, handler = _orbax()
    from etils import epath

    folder.mkdir(exist_ok=True)  # not its parents: below a disk that is no longer mounted nothing must be saved
    loop = asyncio.new_event_loop()
    try:
        parts = loop.run_until_complete(handler.async_save(epath.Path(folder), args=ocp.args.PyTreeSave(state)))
    finally:
        loop.close()
    copied()
    for part in parts or ():
        part.result()


def finish(folder: Path) -> None:
    """Makes one whole of the parts; called by one process, when all have written theirs. Raises like `write`."""
    from etils import epath

    _orbax()[1].finalize(epath.Path(folder))


def describe(folder: Path) -> Any:
    """Returns the stored tree, with Orbax's metadata (shape, dtype) as leaves. Raises like `write`."""
    from etils import epath

    return _orbax()[1].metadata(epath.Path(folder)).tree


def read(folder: Path, abstract_state: Any, *, partial: bool = False) -> Any:
    """Returns a stored state; each process reads what its devices hold. Raises like `write`.

    Args:
        folder: of a state that is finished.
        abstract_state: what is there, as jax.ShapeDtypeStruct with the shardings that are wanted.
        partial: there may be more, which is not read.
    """
    import jax
    from etils import epath

    ocp, handler = _orbax()
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.PyTreeRestore(item=abstract_state, restore_args=arguments, partial_restore=partial)
    return jax.block_until_ready(handler.restore(epath.Path(folder), args=args))


def words_of(error: BaseException) -> str:
    """What an error of Orbax or of a disk says, in one line; TensorStore's errors fill pages."""
    if code := _SYSTEM_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # in TensorStore's words, at their end


@contextlib.contextmanager
def failing(sentence: Callable[[str], str]) -> Iterator[None]:
    """Turns what Orbax or the disk raises into a CheckpointError, whose sentence is made from the error's words."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(sentence(words_of(error))) from error


class _OrbaxChatter(logging.Filter):
    """Drops Orbax's own records: failures reach the user as a sentence; verbose absl logging shows all.

    So it does with what asyncio says of Orbax's other writes after one has failed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        verbose = logging.getLogger("absl").getEffectiveLevel() <= logging.INFO
        left_alone = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
        return verbose or not (left_alone or f"{os.sep}orbax{os.sep}" in record.pathname)


_CHATTER = _OrbaxChatter()


@functools.cache
def _drop_late_results() -> None:
    """Keeps off the screen that TensorStore ends other writes after a failed one has closed the event loop of Orbax."""
    former = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            former(unraisable)

    sys.unraisablehook = hook


def _orbax() -> tuple[Any, Any]:
    """Imports Orbax (0.4 s and JAX) when it is first needed; returns it and a handler."""
    import orbax.checkpoint as ocp

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_CHATTER)
    _drop_late_results()
    return ocp, ocp.PyTreeCheckpointHandler(use_compression=False)
