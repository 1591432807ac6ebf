"""Downloads files of buckets to a local cache of limited size, to read `s3://` data without a mount.

The variable CONVOY_DATA_CACHE names the folder of the cache and selects it (`storage/object_store.py`). Processes of a
host share the cache: locks of files decide who downloads and what may be removed. A file that is in use by a process is
not removed. Each start compares the files that it needs with their checksums.
"""

import contextlib
import errno
import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from engine.base import json_text
from engine.base.errors import DataError
from engine.base.files import lock, replacing, set_aside
from engine.readers.record_manifest import (
    LENGTHS,
    MANIFEST,
    checksum,
    content_checksum,
    dataset_of,
    finished_shards,
    read_manifest,
)
from engine.storage.mounts import PROGRAMS, split_address
from engine.storage.object_store import SWITCH, Bucket

FOLDER, SIZE = SWITCH, "CONVOY_DATA_CACHE_GIB"
DEFAULT_GIB = 50.0
DOWNLOADS = 4  # files that are read at the same time, each of them held in memory
COPY = ".plain"  # ending of the decompressed copy of a file, in the folder of its index
INDEXES = ".convoy_index"
"""Folder of the saved indexes of files (`engine/readers/saved_index.py`); hidden, so that no wildcard matches it."""
PART = "part"  # kind of the hidden file that a download writes
_in_use: dict[Path, IO[str]] = {}  # file -> its lock, which this process holds until it ends
_compared: dict[Path, tuple[int, int, int]] = {}  # file -> size, time and inode when its checksum was compared


def cached_files(address: str) -> list[str]:
    """Returns the local paths of the files that an address or a pattern names, sorted; downloads what is missing.

    The output of `convoy data write` stands for all of its shards. A file that has changed in the bucket is downloaded
    again.

    Raises:
        DataError: the bucket cannot be read, the dataset is not complete, or the cache is too small.
    """
    found = split_address(address)
    assert found is not None
    scheme, bucket, pattern = found
    return _Cache(scheme, bucket).fetch(pattern)


class _Cache:
    """A bucket and its folder in the cache."""

    def __init__(self, scheme: str, bucket: str):
        self._name = f"{scheme}://{bucket}"
        self._cache = Path(os.environ[FOLDER]).expanduser()
        self._folder = self._cache / scheme / bucket
        try:
            self._limit = int(float(os.environ.get(SIZE) or DEFAULT_GIB) * 2**30)
            self._folder.mkdir(parents=True, exist_ok=True)
        except (ValueError, OverflowError) as error:  # "inf" overflows
            raise DataError(f"{SIZE} = {os.environ[SIZE]}: allowed is a number of GiB.") from error
        except OSError as error:
            raise self._unusable(error) from error
        self._bucket = Bucket(scheme, bucket, DataError)

    def fetch(self, pattern: str) -> list[str]:
        """Returns the local paths of the files that match a pattern."""
        prefix = re.split(r"[*?\[]", pattern)[0]
        keys = set(self._bucket.list(prefix))
        matches = [pattern] if pattern in keys else [key for key in sorted(keys) if _matches(key, pattern)]
        matches = [key for key in matches if not key.endswith("/")]
        if not matches and pattern + MANIFEST in keys:
            (manifest,) = self._run(self._local, [pattern + MANIFEST])
            out = manifest.with_name(manifest.name.removesuffix(MANIFEST))
            found = read_manifest(out)
            shards = [] if found is None else [shard.file for shard in finished_shards(out, found)]
            matches = [f"{pattern.rpartition('/')[0]}/{name}".lstrip("/") for name in shards]
            keys.update(matches)
        datasets = sorted({str(dataset_of(Path(key))) for key in matches})
        for dataset in datasets:
            if not dataset.startswith(prefix):  # "a" of the pattern "a-*": the list above lacks its sidecars
                keys.update(self._bucket.list(f"{dataset}."))
        sidecars = {dataset + end for dataset in datasets for end in (MANIFEST, LENGTHS)} - set(matches)
        self._run(self._local, sorted(sidecars & keys))
        self._run(self._forget, [key for key in sorted(sidecars - keys) if (self._folder / key).is_file()])
        return [str(path) for path in self._run(self._local, matches)]

    def _run[T](self, function: Callable[[str], T], keys: list[str]) -> list[T]:
        try:
            with ThreadPoolExecutor(DOWNLOADS) as threads:
                return list(threads.map(function, keys))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{FOLDER} = {self._cache}: cannot be used: {error.strerror or error}. Free space there, or name another "
            "folder."
        )

    def _path(self, key: str) -> Path:
        path = self._folder / key
        if self._folder.resolve() not in path.resolve().parents:
            raise DataError(f"{self._name}/{key}: leads out of the cache. Rename the file.")
        return path

    def _forget(self, key: str) -> None:
        """Removes the copy of a file that is no longer in the bucket."""
        path = self._path(key)
        with _lock(self._cache / ".lock"):
            path.unlink(missing_ok=True)

    def _local(self, key: str) -> Path:
        """Returns the local path of a file; downloads its present content unless the cache has it."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _use(path)
        with _lock(_hidden(path, "download")):
            if path.exists() and _stored(path)["generation"] == self._bucket.generation(key) and _is_whole(path):
                return path
            content, generation = self._bucket.read(key)
            if content is None:
                raise DataError(
                    f"{self._name}/{key}: does not exist, or was removed while it was read. Write it again, or correct "
                    "the pattern."
                )
            with _lock(self._cache / ".lock"):
                self._make_space(len(content), path)
                _replace(path, content, generation)
        return path

    def _make_space(self, size: int, replaced: Path) -> None:
        """Removes the files that were used least recently, so that the cache stays below its bound.

        The small indexes of files stay as long as their files. Their decompressed copies do too, and count. It also
        removes what killed downloads have left. The caller holds the lock of the cache.

        Args:
            size: bytes of the file that will be written.
            replaced: its path. Its earlier content does not count.
        """
        if size > self._limit:
            raise self._too_small(f"{replaced.name} alone needs", size)
        folders = [self._cache / scheme for scheme in PROGRAMS]  # not what `convoy data write` has not sent yet
        for part in (part for folder in folders for part in folder.rglob(f".*.{PART}")):
            part.unlink(missing_ok=True)  # no download runs while the cache is locked
        found = (path for folder in folders for path in folder.rglob("[!.]*"))
        others = (path for path in found if path != replaced and path.parent.name != INDEXES)
        files = [(path, path.stat().st_size + _size_of_copies(path)) for path in others if path.is_file()]
        total = sum(size for _, size in files) + size
        for path, size_of_file in sorted(files, key=lambda file: _last_use(file[0])):
            if total <= self._limit:
                return
            with contextlib.suppress(BlockingIOError), _lock(_hidden(path, "use"), wait=False):
                path.unlink(missing_ok=True)
                total -= size_of_file
                for saved in _saved_beside(path):
                    saved.unlink(missing_ok=True)
        if total > self._limit:
            raise self._too_small("its files in use need", total)

    def _too_small(self, what: str, size: int) -> DataError:
        return DataError(
            f"{self._name}: {what} {size / 2**30:.3g} GiB, and the cache {self._cache} holds "
            f"{self._limit / 2**30:.3g}. Set {SIZE} to more, or unset {FOLDER} to mount the bucket instead."
        )


def _matches(key: str, pattern: str) -> bool:
    """Returns whether a key matches a pattern, whose wildcards do not match a slash."""
    parts, patterns = key.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _saved_beside(path: Path) -> list[Path]:
    """Returns the saved indexes of a file, `<file>.<format>.index`, and its copies, `<file>.<format>.plain`."""
    return [one for one in path.parent.glob(f"{INDEXES}/*") if one.stem.rpartition(".")[0] == path.name]


def _size_of_copies(path: Path) -> int:
    return sum(one.stat().st_size for one in _saved_beside(path) if one.suffix == COPY)


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _use(path: Path) -> None:
    """Marks a file as used now, and by this process until it ends."""
    marker = _hidden(path, "use")
    if path not in _in_use:
        file = open(marker, "a")  # noqa: SIM115, open until the process ends
        lock(file, shared=True)
        _in_use[path] = file
    os.utime(marker)


def _last_use(path: Path) -> float:
    with contextlib.suppress(OSError):
        return _hidden(path, "use").stat().st_mtime
    return 0.0


def _stored(path: Path) -> dict[str, Any]:
    """Returns the generation, the size and the checksum of the content that was downloaded; "" if it is unknown."""
    with contextlib.suppress(OSError, ValueError):  # then the file is downloaded again
        return json_text.read(_hidden(path, "version"), {"generation": str, "size": int, "checksum": str})
    return {"generation": ""}


def _is_whole(path: Path) -> bool:
    """Returns whether a file has the content that was downloaded; sets it aside if not.

    A process reads each state of a file once.
    """
    found, stored = path.stat(), _stored(path)
    stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
    if _compared.get(path) == stamp:
        return True
    if not path.is_file():
        problem = "it is not a regular file"
    elif found.st_size != stored["size"] or checksum(path) != stored["checksum"]:
        problem = "its checksum is not that of its content"
    else:
        _compared[path] = stamp
        return True
    set_aside(path, "file in the cache of a bucket, which is downloaded again", OSError(errno.EILSEQ, problem))
    return False


def _replace(path: Path, content: bytes, generation: str) -> None:
    """Writes a file, then its version. A process that is killed in between leaves a file without a version."""
    version, part = _hidden(path, "version"), _hidden(path, PART)
    try:
        version.unlink(missing_ok=True)
        with replacing(path, part) as file:
            file.write(content)
        with replacing(version, part) as file:
            stored = {"generation": generation, "size": len(content), "checksum": content_checksum(content)}
            file.write(json.dumps(stored).encode())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}. Free space there, or set {SIZE} to less."
        ) from error


@contextlib.contextmanager
def _lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file. Raises BlockingIOError if another process holds it and `wait` is False."""
    with open(path, "a") as file:
        if not lock(file, wait=wait):
            raise BlockingIOError
        yield
