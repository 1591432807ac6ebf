"""Recognizes a copy of a run directory: its lease was copied too, and names the owner of the original directory.

A wrong answer would let two jobs write in one directory. So a directory counts as a copy only if the original can be
examined, both are certainly different directories, and they share no file (a hard link, a symbolic link, a mount).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from engine.run.owner import Owner


def identity(folder: Path) -> str:
    """Returns the device and the inode of a folder, which identify it on one host."""
    return "{}:{}".format(*_numbers(folder))


def original_of(folder: Path, owner: Owner) -> Path | None:
    """Returns the lease folder in which `owner`, a live process of this host, trains, if `folder` is a copy of it.

    Returns None if `folder` is not a copy, or if that is not certain.
    """
    if not owner.folder or not owner.identity:
        return None  # a lease of an older version
    original = Path(f"/proc/{owner.pid}/root{owner.folder}")  # the path as the owner sees it, also in a container
    try:
        # The owner's directory may have been renamed. Then its path shows something else, and `folder` may be it.
        if identity(original) != owner.identity or not _are_different(_numbers(original), _numbers(folder)):
            return None
        run, original_run = folder.parent, original.parent
        if any(_are_same(entry, original_run / entry.relative_to(run)) for entry in _entries(run)):
            return None
    except OSError:
        return None
    return original


def _numbers(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _are_different(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two folders, each a device and an inode, are certainly not the same.

    Inodes identify folders of one file system. A folder on the network, or in a bucket, may be mounted twice with two
    device numbers. Only disks (their major number is not 0) have one.
    """
    if first[0] == second[0]:
        return first[1] != second[1]
    return os.major(first[0]) != 0 and os.major(second[0]) != 0


def _are_same(entry: Path, of_original: Path) -> bool:
    return of_original.exists() and entry.exists() and entry.samefile(of_original)


def _entries(run: Path) -> Iterator[Path]:
    """Yields the files and folders of a run directory, and those in its folders."""
    for entry in run.iterdir():
        yield entry
        if entry.is_dir():
            yield from entry.iterdir()
