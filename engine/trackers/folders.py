"""The folder of a run among those of other runs, for trackers that write files."""

from pathlib import Path
from typing import Any

from engine.base.errors import ConfigError
from engine.storage.mounts import is_address


def local_folder(folder: str) -> str:
    """Returns the path of a local folder. Raises ConfigError for an address, which would become a folder `gs:` here."""
    if is_address(folder):
        raise ConfigError(
            f"{folder}: found an address. This tracker appends to files, so it needs a local folder: mount the bucket "
            "and give the path of the mount."
        )
    return folder


def folder_of_run(parent: Path, name: str, kept: dict[str, Any]) -> Path:
    """Returns the folder of a run below a parent, and creates it; `kept["run"]` is its name.

    A name that another run has taken gets a number.
    """
    parent.mkdir(parents=True, exist_ok=True)
    if (known := parent / str(kept.get("run"))).is_dir() and "run" in kept:
        return known
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            kept["run"] = folder.name
            return folder
