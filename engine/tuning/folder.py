"""A temporary folder that all processes of a command share, for runs that are not kept."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.base.errors import ConfigError
from engine.base.files import temporary_folder
from engine.cluster import group


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """Makes a folder in TMPDIR for the block; every process gets the same path.

    Raises:
        ConfigError: the folder that the primary has made does not exist for this process.
    """
    with contextlib.ExitStack() as stack:
        made = group.run_on_primary(lambda: str(stack.enter_context(temporary_folder("tune"))), "the temporary folder")
        folder = Path(made)
        if not folder.is_dir():
            raise ConfigError(
                f"tune: process {group.index()} does not see {folder}, where process 0 writes. Set TMPDIR to a folder "
                "that all machines share."
            )
        yield folder
        if group.count() > 1:
            group.meet("the end of the temporary runs")  # before the primary removes them
