"""Orbax, as checkpoints use it: imported when it is first needed, kept quiet, opened in one way.

Owns: the format (items, handlers, options) and the sentence of what Orbax or a disk raises. Does not own: what is
done with a manager (`saving.py` writes, `store.py` reads). Nothing else in the engine calls Orbax.

Arrays are stored as uncompressed zarr2 in OCDBT: `benchmarks/save_stall.py` compares the formats.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.config.errors import CheckpointError

POSITION, CONFIG = "position.json", "config.json"


def open_manager(directory: Path, *, read_only: bool = False) -> Any:
    """Returns an Orbax CheckpointManager of a directory, which a writer makes and frees of killed saves."""
    ocp = orbax()
    options = ocp.CheckpointManagerOptions(
        read_only=read_only,
        create=not read_only,
        save_interval_steps=0 if read_only else 1,
        cleanup_tmp_directories=not read_only,
        save_root_metadata=False,
    )
    return ocp.CheckpointManager(
        directory,
        options=options,
        item_names=("state", "position", "config"),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "position": ocp.JsonCheckpointHandler(filename=POSITION),
            "config": ocp.JsonCheckpointHandler(filename=CONFIG),
        },
    )


@contextlib.contextmanager
def failing(sentence: Callable[[str], str]) -> Iterator[None]:
    """Turns what Orbax or the disk raises into a CheckpointError, whose sentence is made from the error's words."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0][:300]  # TensorStore's errors fill pages
        raise CheckpointError(sentence(f"{type(error).__name__}: {first_line}")) from error


class _OrbaxChatter(logging.Filter):
    """Drops Orbax's own records: failures reach the user as a CheckpointError; verbose absl logging shows all."""

    def filter(self, record: logging.LogRecord) -> bool:
        verbose = logging.getLogger("absl").getEffectiveLevel() <= logging.INFO
        return verbose or f"{os.sep}orbax{os.sep}" not in record.pathname


_CHATTER = _OrbaxChatter()


def orbax() -> Any:
    """Imports Orbax (0.4 s and JAX) when it is first needed."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_CHATTER)
    return ocp
