"""Checks that only this user and the superuser can change the code that is loaded from a folder.

It checks the owners and modes of the folder and its files, but not of the folders above, whose owners could put another
folder in its place. A mounted bucket shows the owner of the mount, whoever may write to the bucket.
"""

import os
import stat
from pathlib import Path

from engine.base.errors import ConfigError
from engine.base.files import open_regular


def check_trusted(folder: Path) -> None:
    """Raises ConfigError if another user owns a folder or may write to it."""
    if problem := _problem(folder.stat()):
        raise ConfigError(
            f"{folder}: {problem}. Whoever can write to a folder of compiled programs can run code in your jobs. Let "
            f"the user of the job own it and run chmod go-w {folder}, or compile into a folder of your own; if a mount "
            "or Kubernetes sets its owner and mode, see docs/training.md, Compile before the job starts."
        )


def read_trusted(path: Path) -> bytes:
    """Returns the content of a regular file. Raises ConfigError if another user owns it or may write to it."""
    with open(path, "rb", opener=open_regular) as file:
        if problem := _problem(os.fstat(file.fileno())):
            raise ConfigError(f"{problem}; only the user of the job may be allowed to write to it")
        return file.read()


def _problem(found: os.stat_result) -> str:
    if not hasattr(os, "getuid"):  # a system without such owners and modes
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"it belongs to user {found.st_uid}, and this process runs as user {os.getuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"users other than its owner may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return ""
