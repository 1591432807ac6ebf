"""The manifest of a step: size and hash of each file and a digest of each array. Needs no JAX.

`manifest.json` is written last; a step without it is incomplete and not listed. The hash is XXH3 of 128 bits: it
detects corruption, not forgery. Readers of a step hold a shared lock (flock) on its manifest, so that a writer does not
remove the step.
"""

import heapq
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from engine.base.errors import CheckpointError
from engine.base.files import lock_if_supported, open_regular, read_text
from engine.cluster.exit_status import ExitStatus
from engine.run.atomic import write_text

MANIFEST = "manifest.json"
STATE, POSITION, CONFIG = "state", "position/position.json", "config/config.json"
FROZEN = "frozen/frozen.json"  # names the folder with the parameters that the run never changes (`frozen.py`)
SAVING, DELETED = ".saving", ".deleted"  # suffixes of a directory while it is saved or deleted
# Version of the content of a step: state, position, config. Manifests without a number have the first.
FORMAT, WITH_FROZEN = 1, 2  # the second refers to a folder with frozen parameters
SHOWN = 4  # problems that an error names
_HASH, _HASH_BYTES = re.compile(rb'\{\s*"hash": "([0-9a-f]{32})"'), 64  # how a manifest begins
_BLOCK = 4 << 20  # bytes per read, during which other threads run


class UnsupportedFormat(CheckpointError):
    """A checkpoint of a newer version of Convoy. Every process of a run raises it."""

    everywhere = True


class DamagedCheckpoint(CheckpointError):
    """A step differs from what was saved. Every process of a run raises it.

    Attributes:
        problems: sentences such as "state/d/1b0f: found 120 bytes, expected 158".
    """

    exit_code = ExitStatus.STOP
    everywhere = True

    def __init__(self, directory: Path, problems: list[str]):
        self.problems = problems
        super().__init__(
            f"{directory}: is damaged: {shorten(problems)}. Choose another step; training sets damaged steps aside "
            "and resumes from the newest good checkpoint."
        )


class FileEntry(NamedTuple):
    """Size and hash of one file."""

    bytes: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """The content of a step when it was saved.

    Attributes:
        step: its number.
        files: path relative to the step's directory, with `/` -> FileEntry; all files except the manifest itself.
        arrays: path of each array of the state -> its digest, 16 hexadecimal digits.
        format: version of the stored content.
    """

    step: int
    files: Mapping[str, FileEntry]
    arrays: Mapping[str, str]
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def hash(self) -> str:
        """What `manifest_hash` returns once it is written."""
        found = _HASH.match(self.to_text().encode())
        return found[1].decode() if found else ""

    def to_text(self) -> str:
        """Returns the text of the file. It contains a hash of itself, so that a change of any bit is detected."""
        return _with_hash(
            {
                "format": self.format,
                "step": self.step,
                "files": {name: self.files[name]._asdict() for name in sorted(self.files)},
                "arrays": dict(sorted(self.arrays.items())),
            }
        )

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Parses the text of a manifest.

        Raises:
            ValueError: the text is no manifest or was changed.
            UnsupportedFormat: the text has a newer format.
        """
        try:
            content = json.loads(text)
            del content["hash"]
            intact = _with_hash(content) == text
            number = int(content.get("format", 1))
            if intact and number <= WITH_FROZEN:
                step, files, arrays = int(content["step"]), content["files"], dict(content["arrays"])
                files = {name: FileEntry(int(entry["bytes"]), str(entry["hash"])) for name, entry in files.items()}
                return cls(step, files, arrays, number)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"is not the text of a manifest ({type(error).__name__}: {error})") from error
        if not intact:
            raise ValueError("was changed after it was written: it does not match its own hash")
        raise UnsupportedFormat(
            f"was saved in format {number}; this version of Convoy reads up to format {WITH_FROZEN}. Use the version "
            "that saved it, or a newer one."
        )


def shorten(problems: Sequence[str]) -> str:
    """Returns the first problems in one line."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest of a step's directory.

    Raises:
        CheckpointError: it is missing, damaged, or belongs to another step; the text names the file.
        UnsupportedFormat: it has a newer format; the text names the directory.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.from_text(read_text(path))
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"{directory}: {error}") from None
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing; it is written last, so the step may be incomplete") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} {_error_text(error)}") from error
    if directory.name.isdecimal() and manifest.step != int(directory.name):
        raise CheckpointError(f"{MANIFEST} belongs to step {manifest.step}")
    return manifest


def manifest_hash(directory: Path) -> str:
    """Returns the hash that the manifest of a step begins with, which identifies its content; "" if it has none.

    Reads only the beginning of the file, so that the checkpoints of many runs are identified quickly.
    """
    try:
        with open(directory / MANIFEST, "rb", opener=open_regular) as file:
            found = _HASH.match(file.read(_HASH_BYTES))
    except OSError:
        return ""
    return found[1].decode() if found else ""


def saved_at(directory: Path) -> float:
    """Returns when a step was saved, in seconds since 1970. Raises FileNotFoundError if the step does not exist."""
    manifest = directory / MANIFEST
    return (manifest if manifest.exists() else directory).stat().st_mtime


def size_of(directory: Path, copied: bool) -> tuple[int, CheckpointError | None]:
    """Returns the size of a step's files by its manifest, and None; reads no other file.

    Args:
        directory: directory of the step.
        copied: whether only the small files are there, so that sizes cannot be compared. If the manifest is damaged or
            has a newer format, or a file has another size, the result is 0 and a DamagedCheckpoint or an
            UnsupportedFormat.
    """
    try:
        manifest = read_manifest(directory)
    except UnsupportedFormat as error:
        return 0, error
    except CheckpointError as error:
        return 0, DamagedCheckpoint(directory, [str(error)])
    problems = [] if copied else find_problems(directory, manifest, manifest.files, sizes_only=True)
    return (0, DamagedCheckpoint(directory, problems)) if problems else (manifest.bytes, None)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest of a step's directory and syncs all folders below the directory.

    Raises:
        RunError: it cannot be written.
    """
    write_text(directory / MANIFEST, manifest.to_text())
    for folder in (path for path in [*directory.rglob("*"), directory] if path.is_dir()):
        sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Writes a small new file that survives a power failure."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def files_of(directory: Path) -> dict[str, int]:
    """Returns name -> size of all files below a step's directory except the manifest, sorted by name."""
    files = (path for path in directory.rglob("*") if path.is_file())
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
    return {name: sizes[name] for name in sorted(sizes) if name != MANIFEST}


def divide_files(files: Mapping[str, int], count: int) -> list[list[str]]:
    """Divides files into `count` shares of about equal bytes; the result is the same in every process.

    The largest file goes first, to the share with the fewest bytes (Graham 1969: at most 4/3 of the optimum).
    """
    shares: list[list[str]] = [[] for _ in range(count)]
    loads = [(0, share) for share in range(count)]  # a heap
    for name in sorted(files, key=lambda name: (-files[name], name)):
        load, least = loads[0]
        shares[least].append(name)
        heapq.heapreplace(loads, (load + files[name] + 1, least))  # an empty file is work too
    return shares


def hash_files(directory: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Returns size and hash of files, and makes the files durable (fsync).

    Raises:
        OSError: a file cannot be read.
    """
    return {name: _entry(directory / name, durable=True) for name in names}


def irregular_files(directory: Path) -> list[str]:
    """Returns a sentence for each entry of a step that is neither a regular file nor a folder, such as a link.

    No link is followed, and no file is read or opened. Orbax would follow links, and read devices without end.
    """
    found, folders = [], [directory]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            found.append(f"{folder.relative_to(directory)}: {_error_text(error)}")
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                kind = "a link" if entry.is_symlink() else "a device, a pipe or a socket"
                found.append(f"{Path(entry.path).relative_to(directory)}: is {kind}, expected a regular file")
    return sorted(found)


def find_problems(
    directory: Path,
    manifest: Manifest,
    names: Iterable[str],
    on_bytes: Callable[[int], None] = lambda count: None,
    *,
    sizes_only: bool = False,
) -> list[str]:
    """Compares files with the manifest; returns a sentence for each file that differs, with found and expected values.

    Args:
        directory: directory of the step.
        manifest: manifest of the step.
        names: names of files in it.
        on_bytes: called with the number of bytes of each read.
        sizes_only: compare the sizes and read no file.
    """
    problems = []
    for name in names:
        want = manifest.files[name]
        if not set(name.split("/")).isdisjoint(("", ".", "..")) or "\0" in name:
            problems.append(f"{name!r}: is not the path of a file inside of the step")
            continue
        try:
            found = os.lstat(directory / name)
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"{name}: is not a regular file")
            elif found.st_size != want.bytes:
                problems.append(f"{name}: found {found.st_size} bytes, expected {want.bytes}")
            elif not sizes_only and (have := _entry(directory / name, on_bytes)) != want:
                problems.append(f"{name}: found the hash {have.hash}, expected {want.hash}, in {want.bytes} bytes")
        except FileNotFoundError:
            problems.append(f"{name}: is missing, expected {want.bytes} bytes")
        except OSError as error:
            problems.append(f"{name}: {_error_text(error)}")
    return problems


@contextmanager
def read_lock(directory: Path) -> Iterator[None]:
    """Prevents writers from removing a step while the block runs.

    The kernel releases the lock when its process ends. It needs no write permission, and works on network disks that
    support flock (NFS from version 4, Lustre, GPFS where enabled). On other disks a step may be removed while it is
    read.

    Raises:
        FileNotFoundError: the step does not exist, or was removed at this moment.
    """
    with _open_manifest(directory) as file:
        lock_if_supported(file, shared=True)
        # The step may have been renamed between open and lock.
        if not os.path.samestat(os.stat(directory / MANIFEST), os.fstat(file.fileno())):
            raise FileNotFoundError(f"{directory} was replaced")
        yield


@contextmanager
def delete_lock(directory: Path) -> Iterator[bool]:
    """Yields whether no process reads a step, and blocks new readers while the block runs."""
    try:
        with _open_manifest(directory) as file:
            yield lock_if_supported(file, wait=False)
    except FileNotFoundError:
        yield True  # no process reads a step without a manifest


def _open_manifest(directory: Path) -> FileIO:
    """Opens the file to lock it. Does not wait for a pipe in its place."""
    return FileIO(directory / MANIFEST, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def _entry(path: Path, on_bytes: Callable[[int], None] = lambda count: None, durable: bool = False) -> FileEntry:
    import xxhash

    hasher, size = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(_BLOCK, os.fstat(file.fileno()).st_size + 1)))
        if durable:
            os.fsync(file.fileno())
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
            on_bytes(count)
    return FileEntry(size, hasher.hexdigest())


def _with_hash(content: Mapping[str, object]) -> str:
    import xxhash

    digest = xxhash.xxh3_128(json.dumps(content).encode()).hexdigest()
    return json.dumps({"hash": digest, **content}, indent=1) + "\n"


def _error_text(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
