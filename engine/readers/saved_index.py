"""Saves the index of a file, such as the offsets of its records, so that it is built only once.

The index of `data/a.tfrecord` is `data/.convoy_index/a.tfrecord.FORMAT.index`, or lies in the user's cache folder if
`data` cannot be written to. It is valid as long as the size and the modification time of the file are the same. It has
a checksum, and a damaged one is set aside. While one process builds an index, it locks a file next to the index, so
that the others wait and read the result.
"""

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.base.errors import DataError
from engine.base.files import lock_if_supported, open_regular, read_checked, set_aside, write_checked
from engine.base.types import PyTree
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.readers.bucket_cache import INDEXES as FOLDER
from engine.storage.mounts import shown

THREADS = 16  # files indexed at the same time: most of the time is spent waiting for the disk or the network
REPORT_S = 10.0  # between two lines about the progress
POLL_S = 0.05  # between two attempts to lock an index that another process builds

type Index = dict[str, np.ndarray]


def file_indexes(paths: Sequence[str], form: str, build: Callable[[str], Index]) -> list[Index]:
    """Returns the index of each file: the saved one, or else a new one, which is saved unless its arrays are empty.

    Args:
        paths: the files.
        form: name and version of the content of the index, such as "tfrecord-1".
        build: returns the index of a file. Several threads call it at once.

    Raises:
        DataError: a file cannot be read, or `build` raises it.
    """
    progress = _Progress(len(paths))

    def one(path: str) -> Index:
        try:
            stamp = _stamp(path)
            found = _read(path, form, stamp)
            if found is None:
                with _locked(path, form, lambda: progress.wait(path)):
                    found = _read(path, form, stamp)  # another process may have built it
                    if found is None:
                        found = build(path)
                        if any(map(len, found.values())):  # else the file may be readable at the next start
                            _write(path, form, stamp, found)
        except OSError as error:
            raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}). Check the file.") from error
        progress.add()
        return found

    if len(paths) == 1:
        return [one(paths[0])]
    with ThreadPoolExecutor(min(THREADS, len(paths))) as pool:
        return list(pool.map(one, paths))


class _Progress:
    """Prints on the primary how many files are indexed, since it may take minutes."""

    def __init__(self, total: int):
        self._total, self._done, self._lock, self._last = total, 0, threading.Lock(), time.monotonic()

    def add(self) -> None:
        with self._lock:
            self._done += 1
            self._report("The next run reuses it.")

    def wait(self, path: str) -> None:
        with self._lock:
            self._report(f"Waiting for another process that indexes {shown(path)}.")

    def _report(self, sentence: str) -> None:
        if time.monotonic() - self._last > REPORT_S and is_primary():
            self._last = time.monotonic()
            output.show(f"indexing files: {self._done:,} of {self._total:,}. {sentence}")


@contextlib.contextmanager
def _locked(path: str, form: str, wait: Callable[[], None]) -> Iterator[None]:
    """Lets one process at a time build an index; calls `wait` while another process does.

    The system releases the lock of a process that ends. Without a place for the index, or where the file system
    supports no flock, all processes build it.
    """
    for place in index_paths(path, form):
        lock = place.with_suffix(".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "ab", opener=open_regular)  # noqa: SIM115, closed below
        except OSError:
            continue
        with file:
            while not lock_if_supported(file, wait=False):
                wait()
                time.sleep(POLL_S)
            try:
                yield
            finally:  # a process that still waits for the deleted file finds the index after it
                with contextlib.suppress(OSError):
                    os.unlink(lock)
        return
    yield


def _stamp(path: str) -> np.ndarray:
    """Returns what identifies the state of a file, int64 `[2]`: its size and its modification time."""
    found = os.stat(path)
    return np.array([found.st_size, found.st_mtime_ns], np.int64)


def index_paths(path: str, form: str) -> list[Path]:
    """Returns where the index of a file may be saved, the first choice first."""
    full = os.path.abspath(path)
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "convoy" / "index"
    digest = hashlib.blake2b(os.fsencode(full), digest_size=16).hexdigest()
    folder, name = os.path.split(full)
    return [Path(folder, FOLDER, f"{name}.{form}.index"), cache / f"{digest}.{form}.index"]


def _read(path: str, form: str, stamp: np.ndarray) -> Index | None:
    """Returns the saved index; None if there is none, or it is damaged, or belongs to another state of the file."""
    for place in index_paths(path, form):
        try:
            content = read_checked(place)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            set_aside(place, f"index of {shown(path)}, which is built again", error)
            continue
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        if np.array_equal(found.pop("stamp"), stamp):
            return found
    return None


def _write(path: str, form: str, stamp: np.ndarray, index: Index) -> None:
    """Saves an index at the first place that can be written to; the file appears complete or not at all."""
    arrays: dict[str, PyTree] = {"stamp": stamp, **index}
    content = io.BytesIO()
    np.savez(content, **arrays)
    for place in index_paths(path, form):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_checked(place, content.getbuffer())  # other users may read it
            return
