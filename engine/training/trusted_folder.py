"""Checks that only this user and the superuser can change the code that is loaded from a folder, as ssh does for keys.

It checks owners and modes. A mounted bucket shows the owner of the mount, whoever may write to the bucket.
"""

import os
import stat
from pathlib import Path

from engine.config.errors import ConfigError


def check_trusted(folder: Path) -> None:
    """Raises ConfigError if another user owns a folder or may write to it."""
    if problem := _problem(folder.stat()):
        raise ConfigError(
            f"{folder}: {problem}. Whoever writes to a folder of compiled programs runs code in your jobs. Let the "
            f"user of the job own it, and run chmod go-w {folder}; or compile into a folder of your own."
        )


def read_trusted(path: Path) -> bytes:
    """Returns the content of a file. Raises ConfigError if another user owns it or may write to it."""
    with path.open("rb") as file:
        if problem := _problem(os.fstat(file.fileno())):
            raise ConfigError(f"{problem}; it must be writable for the user of the job alone")
        return file.read()


def _problem(found: os.stat_result) -> str:
    if not hasattr(os, "getuid"):  # a system without such owners and modes
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"it belongs to user {found.st_uid}, and this process runs as user {os.getuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"users other than its owner may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return ""
