"""Finds the files of a dataset from paths, shell wildcards and bucket addresses, and identifies their content."""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import DataError
from engine.data.examples import evenly_spaced
from engine.readers.bucket_cache import cached_files
from engine.storage.mounts import local_path
from engine.storage.object_store import is_selected

FINGERPRINT_FILES = 32  # files that a fingerprint names and samples
WINDOWS, WINDOW_BYTES = 16, 4096  # a fingerprint hashes so many windows of each of these files, of this size


type Pattern = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A path or list of paths; shell wildcards and bucket addresses are allowed."""


def patterns(pattern: Pattern) -> list[str]:
    """Returns the paths of a pattern as text."""
    return [os.fspath(path) for path in ([pattern] if isinstance(pattern, str | os.PathLike) else pattern)]


def find_files(pattern: Pattern, kind: str, advice: str = "Correct the pattern.") -> list[str]:
    """Returns the paths of the files that match one path or each of several paths, in this order.

    Files that match one wildcard are sorted by name. The leading folders of a path, or the whole path, are taken
    literally as far as they exist as written: in `lr=[0.1]/*.tfrecord`, only `*` is a wildcard if there is a folder
    `lr=[0.1]`.

    Args:
        pattern: path or list of paths; shell wildcards and bucket addresses are allowed; a bucket is mounted
            (`engine/storage/mounts.py`), or its files are downloaded to a cache (`bucket_cache.py`).
        kind: kind of the files in error texts, such as "TFRecord".
        advice: what to do if no file matches.

    Raises:
        DataError: no file matches.
        RunError: a bucket cannot be mounted.
    """
    paths: list[str] = []
    for path in patterns(pattern):
        if is_selected(path):
            found = cached_files(path)
        else:
            found = sorted(glob.glob(_escape_existing(local_path(os.path.expanduser(path)))))
        if not found:
            raise DataError(f"{path}: no such file. {advice}")
        paths += found
    if not paths:
        raise DataError(f"The list of paths is empty. Name at least one {kind} file.")
    return paths


def _escape_existing(pattern: Path) -> str:
    """Returns a pattern in which wildcards are escaped in the longest leading part that exists as written."""
    existing = next((path for path in (pattern, *pattern.parents) if os.path.exists(path)), Path())
    return str(Path(glob.escape(str(existing)), *pattern.parts[len(existing.parts) :]))


def file_names(paths: Sequence[str]) -> list[str]:
    """Returns the name and the size of each file, such as `a.tfrecord 120 bytes`.

    Folders and modification times are left out, since a copy of the files has the same content.
    """
    return [f"{os.path.basename(path)} {os.path.getsize(path)} bytes" for path in paths]


def sampled_files(paths: Sequence[str]) -> list[str]:
    """Returns the parts of a fingerprint that identify files: for each of the first files, a hash of samples."""
    first = paths[:FINGERPRINT_FILES]
    parts = [f"{name} {sample_hash(path)}" for name, path in zip(file_names(first), first, strict=True)]
    return [*parts, f"{len(paths) - len(first)} more files"] if len(paths) > len(first) else parts


def sample_hash(path: str) -> str:
    """Returns a hash of evenly spaced windows of a file, which include its first and its last bytes."""
    found, last = hashlib.blake2b(digest_size=6), max(0, os.path.getsize(path) - WINDOW_BYTES)
    with open(path, "rb") as file:
        for start in evenly_spaced(last + 1, WINDOWS):
            file.seek(start)
            found.update(file.read(WINDOW_BYTES))
    return found.hexdigest()
