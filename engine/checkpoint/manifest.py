"""The manifest of a step: size and hash of each of its files and a digest of each array; a step is held against it.

Owns: `manifest.json`, hashing, the dealing out of files over processes, and the sentences about a file that is not as
it was. Does not own: when a manifest is written (`write_manifest.py`), what is done about a damaged step
(`restore_latest.py`), how digests are made (`parallel/digest.py`). Needs no JAX.

Terms. *Hash*: XXH3 of 128 bits over a file's bytes, 32 hexadecimal digits. It finds accidents, not forgeries. *Dealt
out*: each file is hashed by one of the processes, which get about the same number of bytes.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.config.errors import CheckpointError
from engine.run.atomic import write_text

MANIFEST = "manifest.json"
_BLOCK = 4 << 20  # bytes that are read at once; other threads run meanwhile


class Entry(NamedTuple):
    """What is known of one file."""

    bytes: int
    hash: str


@dataclass(frozen=True)
class Manifest:
    """What a step was when it was saved.

    Attributes:
        step: its number.
        files: name below the step's directory, with `/` -> Entry; all but the manifest itself.
        arrays: path of each array of the state -> its digest, 16 hexadecimal digits.
    """

    step: int
    files: Mapping[str, Entry]
    arrays: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    def to_text(self) -> str:
        """Returns the text of the file; it holds a hash of itself, so that no bit of it can change unseen."""
        content = {
            "step": self.step,
            "files": {name: self.files[name]._asdict() for name in sorted(self.files)},
            "arrays": dict(sorted(self.arrays.items())),
        }
        return json.dumps({"hash": _hash_of(json.dumps(content)), **content}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Returns what a text says. Raises ValueError if it is not exactly one that `to_text` wrote."""
        try:
            found = json.loads(text)
            files = {name: Entry(int(entry["bytes"]), str(entry["hash"])) for name, entry in found["files"].items()}
            manifest = cls(int(found["step"]), files, dict(found["arrays"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"is not the text of a manifest ({type(error).__name__}: {error})") from error
        if manifest.to_text() != text:
            raise ValueError("was changed after it was written: its own hash does not fit it")
        return manifest


def read_manifest(directory: Path) -> Manifest:
    """Returns the manifest of a step's directory.

    Raises:
        CheckpointError: there is none, it is damaged, or it is that of another step; the sentence names the file.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.from_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing; it is written last, so the step may not be whole") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} {_words(error)}") from error
    if directory.name.isdecimal() and manifest.step != int(directory.name):
        raise CheckpointError(f"{MANIFEST} is that of step {manifest.step}")
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest of a step's directory, in one piece, and makes all names below it durable.

    Raises:
        RunError: it cannot be written.
    """
    write_text(directory / MANIFEST, manifest.to_text())
    for folder in (path for path in [*directory.rglob("*"), directory] if path.is_dir()):
        sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(directory: Path) -> dict[str, int]:
    """Returns name -> size of all files below a step's directory but the manifest, in the order of their names."""
    files = (path for path in directory.rglob("*") if path.is_file())
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
    return {name: sizes[name] for name in sorted(sizes) if name != MANIFEST}


def deal(files: Mapping[str, int], count: int) -> list[list[str]]:
    """Returns the files of each of `count` processes, of about the same number of bytes; the same in every process.

    The largest file goes first, to whoever has the fewest bytes by then (Graham 1969: at most 4/3 of the best).
    """
    hands: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(files, key=lambda name: (-files[name], name)):
        least = loads.index(min(loads))
        hands[least].append(name)
        loads[least] += files[name] + 1  # an empty file is work too
    return hands


def hash_files(directory: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Returns size and hash of files as they are on disk, where they are durable when this returns.

    Raises:
        OSError: one cannot be read.
    """
    return {name: _entry(directory / name, durable=True) for name in names}


def problems(
    directory: Path, manifest: Manifest, names: Iterable[str], on_bytes: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Returns a sentence for each of these files that is not as the manifest says: which, what was found and expected.

    Args:
        directory: of the step.
        manifest: that of the step.
        names: of files in it.
        on_bytes: called with the number of bytes that were looked at, time and again.
    """
    found = []
    for name in names:
        want = manifest.files[name]
        try:
            size = (directory / name).stat().st_size
            if size != want.bytes:
                found.append(f"{name}: found {size} bytes, expected {want.bytes}")
            elif (have := _entry(directory / name, on_bytes)) != want:
                found.append(f"{name}: found the hash {have.hash}, expected {want.hash}, in {want.bytes} bytes")
        except FileNotFoundError:
            found.append(f"{name}: is missing, expected {want.bytes} bytes")
        except OSError as error:
            found.append(f"{name}: {_words(error)}")
    return found


def _entry(path: Path, on_bytes: Callable[[int], None] = lambda count: None, durable: bool = False) -> Entry:
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
    return Entry(size, hasher.hexdigest())


def _hash_of(text: str) -> str:
    import xxhash

    return xxhash.xxh3_128(text.encode()).hexdigest()


def _words(error: Exception) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
