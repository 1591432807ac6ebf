"""Makes a miniature when the folder of a dataset is the default one and absent."""

import importlib
import os
import shutil
from pathlib import Path

DEFAULT = "data/miniatures"
"""Folder of all miniatures; that of the dataset NAME is DEFAULT/NAME."""


def make_if_default(name: str, folder: str) -> None:
    """Writes the miniature `name` to `folder` if that is its default folder and absent.

    Several processes may do this at once: each writes to a folder of its own, and the first one to finish renames it.
    """
    if Path(folder) != Path(DEFAULT) / name or Path(folder).exists():
        return
    own = Path(f"{folder}.{os.getpid()}.tmp")
    shutil.rmtree(own, ignore_errors=True)
    importlib.import_module(f"{__package__}.{name}").write(own)
    try:
        own.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(own)
        if not Path(folder).exists():
            raise
