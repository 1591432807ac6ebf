"""The manifest of a dataset that `convoy data write` wrote: its source, its shards and their checksums.

For the output `scenes.arrayrecord`, the shards are `scenes-00003-of-00016.arrayrecord`, or `scenes.arrayrecord` itself
if there is only one. The manifest is `scenes.arrayrecord.manifest.json`. The length index,
`scenes.arrayrecord.lengths.npz`, holds for each array field of the examples its first dimension, int32 `[examples]`.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from engine.base import json_text
from engine.base.errors import DataError
from engine.base.files import replacing
from engine.base.types import PyTree
from engine.run import lineage

FORMAT = 1
MANIFEST, LENGTHS, LOCK, SEQUENCES = ".manifest.json", ".lengths.npz", ".lock", ".sequences"
SIDECARS = (MANIFEST, LENGTHS, LOCK, SEQUENCES, f".{lineage.RECORD}", f".{lineage.NAMES}")
"""Suffixes of a dataset's files that are not shards."""
_READ_BYTES = 4 << 20  # per read of a file that is hashed
_FIELD = "field:"  # in front of the names of fields in the length index, since `file` is a parameter of numpy.savez


@dataclass(frozen=True)
class BadRecord:
    """An example that could not be read or written."""

    index: int
    """Its index in the source."""
    error: str


@dataclass(frozen=True)
class Shard:
    """A finished file: examples `start` to `stop - 1` of the source, without the bad ones."""

    file: str
    start: int
    stop: int
    examples: int
    bytes: int
    checksum: str
    bad: tuple[BadRecord, ...] = ()


@dataclass(frozen=True)
class RecordManifest:
    """The shards of a dataset, and the source that they come from."""

    source: Mapping[str, str]
    """Name, number of examples and fingerprint of the source."""
    on_error: str
    shards: Sequence[Shard | None]
    """The shards in order; None for one that is not finished."""
    complete: bool = False

    def to_text(self) -> str:
        """Returns the text of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def shard_name(out: Path, number: int, count: int) -> str:
    """Returns the name of a shard."""
    return out.name if count == 1 else f"{out.stem}-{number:05}-of-{count:05}{out.suffix}"


def dataset_of(file: Path) -> Path:
    """Returns the output path to which a file may belong as a shard."""
    found = re.fullmatch(r"(.*)-\d{5}-of-\d{5}(.*?)", file.name, re.DOTALL)
    return file if found is None else file.with_name(found[1] + found[2])


def manifest_path(out: Path) -> Path:
    """Returns the path of the manifest of an output."""
    return out.with_name(out.name + MANIFEST)


def lengths_path(out: Path) -> Path:
    """Returns the path of the length index of an output."""
    return out.with_name(out.name + LENGTHS)


def read_manifest(out: Path) -> RecordManifest | None:
    """Returns the manifest of an output; None if there is none.

    Raises:
        DataError: it is damaged, or of a newer version.
    """
    path = manifest_path(out)
    try:
        stored = json_text.read(path, {"format": int, str: object})
        if stored.pop("format") != FORMAT:
            raise ValueError("written by another version")
        stored = json_text.check(stored, _SHAPE)
        shards = [None if shard is None else _shard(shard, number) for number, shard in enumerate(stored["shards"])]
        return RecordManifest(**{**stored, "shards": shards})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: the manifest cannot be read ({json_text.reason(error)}). Write the dataset again, or delete this "
            "file to read the shards without their checksums and lengths."
        ) from error


_SHAPE = {"source": {str: str}, "on_error": str, "shards": [object], "complete": bool}
_SHARD = {
    "file": str, "start": int, "stop": int, "examples": int, "bytes": int, "checksum": str,
    "bad": [{"index": int, "error": str}],
}  # fmt: skip


def _shard(stored: object, number: int) -> Shard:
    found = json_text.check(stored, _SHARD, f"shards[{number}]")
    return Shard(**{**found, "bad": tuple(BadRecord(**record) for record in found["bad"])})


@dataclass(frozen=True)
class KnownShard:
    """A file whose dataset has a manifest: records `first` to `first + count - 1` of the dataset."""

    out: Path
    first: int
    count: int
    checksum: str


def known_shards(paths: Sequence[str]) -> dict[str, KnownShard]:
    """Returns path -> what the manifest of its dataset says, for the files that have one.

    Raises:
        DataError: a dataset is not complete, or a file has another size than when it was written.
    """
    found: dict[str, KnownShard] = {}
    datasets: dict[Path, dict[str, tuple[int, Shard]]] = {}
    for path in map(Path, paths):
        out = dataset_of(path)
        if out not in datasets:
            datasets[out], first = {}, 0
            if (manifest := read_manifest(out)) is not None:
                for shard in finished_shards(out, manifest):
                    datasets[out][shard.file] = (first, shard)
                    first += shard.examples
        if path.name in datasets[out]:
            first, shard = datasets[out][path.name]
            _check_size(path, shard.bytes)
            found[str(path)] = KnownShard(out, first, shard.examples, shard.checksum)
    return found


def finished_shards(out: Path, manifest: RecordManifest) -> list[Shard]:
    """Returns the shards of a complete dataset. Raises DataError for another one."""
    finished = [shard for shard in manifest.shards if shard is not None]
    if not manifest.complete:
        raise DataError(
            f"{out}: {len(finished)} of {len(manifest.shards)} shards are written. Run the same `convoy data write` "
            "again, which writes the others."
        )
    return finished


def _check_size(path: Path, expected: int) -> None:
    with contextlib.suppress(OSError):  # the reader reports a file that it cannot open
        if (size := path.stat().st_size) != expected:
            raise DataError(
                f"{path}: has {size} bytes, but {expected} were written ({manifest_path(dataset_of(path)).name}). Copy "
                "the file again, or write the dataset again."
            )


def checksum(path: str | os.PathLike[str]) -> str:
    """Returns the hash of a file."""
    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            found.update(block)
    return f"xxh3_128:{found.hexdigest()}"


def content_checksum(content: bytes) -> str:
    """Returns what `checksum` returns for a file with this content."""
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"


def save_lengths(path: Path, lengths: Mapping[str, np.ndarray]) -> None:
    """Writes a length index. The same lengths give the same bytes."""
    with replacing(path) as file:
        arrays: dict[str, PyTree] = {f"{_FIELD}{name}": lengths[name] for name in sorted(lengths)}
        np.savez_compressed(file, **arrays)


def load_lengths(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the lengths of these fields, or of all; fields that the index lacks are left out.

    Raises:
        DataError: the index is damaged.
    """
    try:
        # NumPy leaves a damaged file open if it has opened it.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            found = [name.removeprefix(_FIELD) for name in stored.files]
            return {name: stored[f"{_FIELD}{name}"] for name in found if names is None or name in names}
    except FileNotFoundError:
        return {}
    except Exception as error:  # numpy and zipfile raise errors of many kinds
        raise DataError(
            f"{path}: the length index cannot be read ({error}). Write the dataset again, or delete this file."
        ) from error
