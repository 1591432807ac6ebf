"""Reads WebDataset shards, which are tar files, as a source with random access.

Consecutive members whose names differ only after the first dot of the file name are one sample: `a/17.jpg` and
`a/17.cls` are the members `jpg` and `cls` of the sample `a/17`. The index of a shard holds where each member lies.
"""

import contextlib
import dataclasses
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.data.examples import FINGERPRINT_EXAMPLES, Example, evenly_spaced
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, SPEC_TRIES, BaseSource
from engine.readers.decoders import Decoder, decode, decoder_name, find_decoder
from engine.readers.files import Pattern, file_names, find_files, sampled_files
from engine.readers.json_values import find_json_values
from engine.readers.members import default_decoder, is_json
from engine.readers.record_files import RecordFiles
from engine.readers.saved_index import Index, file_indexes
from engine.storage.mounts import shown

FORM = "webdataset-2"
BLOCK = 512  # bytes: members of a tar file begin at a multiple of it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}  # by the first two bytes


class WebDataset(BaseSource):
    """Source of the samples of WebDataset shards.

    An example is a dict of the decoded members, by their suffix in lower case, and the text `__key__`. Decoded are
    `txt`, `cls` and other integers, `json`, `npy`, `npz`, and images (extra `images`); others stay bytes, which do not
    reach the devices. On the first use of a shard, an index of its members is built and saved in `.convoy_index/` next
    to the shard, or in the user's cache folder. The order of a run is that of any other source, so shards need no
    shuffling.

    Args:
        pattern: path or list of paths of uncompressed tar files; shell wildcards and bucket addresses are allowed.
        fields: suffixes of the members to read. Default: those of the first sample, with a warning if others have more.
        decoders: suffix -> function of the bytes, or its dotted path, instead of the usual decoder.
        dtypes: field of a JSON member, such as "json.speed" -> dtype, instead of that of the first samples.
        optional: suffix -> value of this member in a sample that lacks it; None leaves the entry out. It is also read.

    Raises:
        DataError: no file matches, a file is compressed or no tar file, there are no samples, no sample has a member
            that is named, or `dtypes` names an unknown field.
        ConfigError: the path of a decoder does not exist.
    """

    def __init__(
        self,
        pattern: Pattern,
        fields: Sequence[str] | None = None,
        decoders: Mapping[str, str | Decoder] | None = None,
        dtypes: Mapping[str, str] | None = None,
        optional: Mapping[str, Any] | None = None,
    ):
        paths = find_files(pattern, "tar")
        self.paths, self.file_states = paths, FileStates(paths)
        self._indexes = file_indexes(paths, FORM, _build)
        _warn([path for path, index in zip(paths, self._indexes, strict=True) if index["unmarked"].size])
        self._files = RecordFiles(paths, [len(index["key"]) for index in self._indexes], self.file_states)
        self._optional = {
            suffix: np.asarray(value) if isinstance(value, bool | int | float) else value
            for suffix, value in (optional or {}).items()
        }
        known = self._suffixes()
        if fields is None:
            fields = self._first_fields()
            _warn_of_others([suffix for suffix in known if suffix not in fields and suffix not in self._optional])
        fields = [*fields, *(suffix for suffix in self._optional if suffix not in fields)]
        if len(self) and (unknown := [suffix for suffix in fields if suffix not in known]):
            argument = "optional" if unknown[0] in self._optional else "fields"
            raise DataError(
                f"{argument}: no sample has a member {unknown[0]!r}.{did_you_mean(unknown[0], known)} Found: "
                f"{', '.join(known)}."
            )
        given = decoders or {}
        if unknown := [suffix for suffix in given if suffix not in fields]:
            raise DataError(f"decoders: no member {unknown[0]!r} is read.{did_you_mean(unknown[0], fields)}")
        in_json = [suffix for suffix in fields if is_json(suffix) and suffix not in given]
        values = find_json_values(in_json, self._first_values, dtypes)
        self._decoders = {
            suffix: find_decoder(given[suffix], f"decoders.{suffix}")
            if suffix in given
            else default_decoder(suffix, values.get(suffix))
            for suffix in fields
        }

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Returns one sample.

        Raises:
            DataError: a member is missing or damaged; the text names the sample and its file.
        """
        key, where, file, members = self._sample(index)
        example: dict[str, Any] = {"__key__": key}
        for suffix, decoder in self._decoders.items():
            if suffix not in members:
                if suffix not in self._optional:
                    found = ", ".join(members) or "none"
                    raise DataError(
                        f"{where} has no member {suffix!r}, found {found}. Correct `fields`, or give a value for the "
                        "samples without it: optional={...}."
                    )
                if (value := self._optional[suffix]) is not None:
                    example[suffix] = value.copy() if isinstance(value, np.ndarray) else value
                continue
            example[suffix] = decode(decoder, self._files.read(file, *members[suffix]), f"{where}, {suffix}")
        return example

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, a hash of some samples, and the decoders."""
        found = hashlib.blake2b(SEPARATOR.join(file_names(self._files.paths)).encode(), digest_size=16)
        for index in evenly_spaced(len(self), FINGERPRINT_EXAMPLES):
            try:
                _, _, file, members = self._sample(index)
                for suffix in self._decoders:  # in their order; that of a set differs between processes
                    if suffix in members:
                        found.update(suffix.encode() + self._files.read(file, *members[suffix]))
            except DataError:  # training reports the error when it reads this sample
                found.update(b"cannot be read")
        decoders = ", ".join(f"{suffix} {decoder_name(decoder)}" for suffix, decoder in self._decoders.items())
        parts = [*sampled_files(self._files.paths), f"samples {found.hexdigest()}"]
        parts += [f"without {suffix} {value!r}" for suffix, value in self._optional.items()]
        return SEPARATOR.join([*parts, f"members {decoders}".replace(SEPARATOR, " ")])

    def _suffixes(self) -> list[str]:
        """Returns the suffixes of all members of all shards, sorted."""
        stored = {bytes(suffix) for index in self._indexes for suffix in index["suffixes"]}
        return sorted(suffix.decode(errors="surrogateescape") for suffix in stored)

    def _sample(self, index: int) -> tuple[str, str, int, dict[str, tuple[int, int]]]:
        """Returns the key of a sample, its name in error texts, its file, and suffix -> (offset, size) of its members.

        Raises:
            DataError: the sample is incomplete, or two of its members have one name.
        """
        file, number = self._files.locate(index)
        stored = self._indexes[file]
        key = bytes(stored["key"][number]).decode(errors="surrogateescape")
        where = f"{self._files.name(index)}, {key}"
        first, end = stored["first"][number : number + 2].tolist()
        if first == end:
            raise DataError(
                f"{self._files.name(index)}: the file is damaged or ends at byte {stored['damage'][0]}. Samples after "
                "it cannot be found: copy or write the file again."
            )
        members = {}
        for member in range(first, end):
            suffix = bytes(stored["suffixes"][stored["suffix"][member]]).decode(errors="surrogateescape")
            if suffix in members:
                raise DataError(f"{where} has two members {suffix!r}. Write the file again.")
            members[suffix] = (int(stored["offset"][member]), int(stored["size"][member]))
        return key, where, file, members

    def _first_values(self, suffix: str) -> list[Any]:
        """Returns the values of a JSON member in the first samples."""
        read, values = default_decoder(suffix, lambda value: value), []
        for index in range(min(len(self), SPEC_TRIES)):
            with contextlib.suppress(DataError, KeyError):  # training reports the error when it reads this sample
                _, _, file, members = self._sample(index)
                values.append(read(self._files.read(file, *members[suffix])))
        return values

    def _first_fields(self) -> list[str]:
        """Returns the suffixes of the first sample that can be read."""
        for index in range(len(self)):
            try:
                return list(self._sample(index)[3])
            except DataError:
                continue
        raise DataError(
            f"{shown(self._files.paths[0])}: no samples in {len(self._files.paths)} files. Members are named like "
            "17.jpg and 17.cls."
        )


def _warn(unmarked: list[str]) -> None:
    """Prints on the primary which files may lack their last samples."""
    if unmarked and is_primary():
        more = f" and {len(unmarked) - 1:,} more" if len(unmarked) > 1 else ""
        output.show(
            f"warning: no end marker of tar in {shown(unmarked[0])}{more}. If the writer of the shards "
            "writes this marker, samples are missing: copy the files again.",
        )


def _warn_of_others(suffixes: list[str]) -> None:
    """Prints on the primary which members are not read since the first sample has none of them."""
    if suffixes and is_primary():
        output.show(
            f"warning: members {', '.join(suffixes[:20])} are not read, since the first sample has none of them. Name "
            "the members to read in `fields`, and in `optional` those that some samples lack.",
        )


def _build(path: str) -> Index:
    """Returns where the members of a shard lie.

    `key` `[samples]`, `first` `[samples + 1]`, the first member of each sample, and `offset`, `size` and `suffix`
    `[members]`, the last an index into `suffixes`. The damaged end of a file, at byte `damage[0]`, is a last sample
    without members. A file that ends after a member, at byte `unmarked[0]`, without an end marker may be cut there, but
    some writers omit the marker.

    Raises:
        DataError: the file is compressed, or no tar file, or has sparse members.
    """
    shard = _Shard()
    damage, unmarked = np.zeros(0, np.int64), np.zeros(0, np.int64)
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        _read_members(path, file, shard)
        keys, first, members, end = shard.keys, shard.first, shard.members, shard.end
        if members and sum(members[-1][:2]) > length:  # its last sample is incomplete
            damage = np.array([length], np.int64)
            del members[first.pop() :]
            keys[-1] = ""
            first.append(len(members))
        elif length:
            file.seek(min(end, length))
            if end > length or file.read(BLOCK).strip(b"\0"):
                damage = np.array([min(end, length)], np.int64)
                keys.append("")
                first.append(len(members))
            elif end == length:
                unmarked = np.array([length], np.int64)
    table = np.array(members, np.int64).reshape(-1, 3)
    return {
        "key": np.array([key.encode(errors="surrogateescape") for key in keys], np.bytes_),
        "first": np.array([*first, len(members)], np.int64),
        "offset": table[:, 0],
        "size": table[:, 1],
        "suffix": table[:, 2].astype(np.int32),
        "suffixes": np.array([suffix.encode(errors="surrogateescape") for suffix in shard.suffixes], np.bytes_),
        "damage": damage,
        "unmarked": unmarked,
    }


@dataclasses.dataclass
class _Shard:
    """The members of a shard as far as they could be read."""

    keys: list[str] = dataclasses.field(default_factory=list)
    """Key of each sample."""
    first: list[int] = dataclasses.field(default_factory=list)
    """Number of the first member of each sample."""
    members: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    """Offset, size and number of the suffix of each member."""
    suffixes: dict[str, int] = dataclasses.field(default_factory=dict)
    end: int = 0
    """Byte after the last member."""


def _read_members(path: str, file: BinaryIO, shard: _Shard) -> None:
    """Adds the members of a tar file up to its end or its damage. Raises DataError as `_build` does."""
    file.seek(0)
    magic = file.read(2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                shard.end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                key, suffix = _split(member.name)
                if member.issparse():  # its data lies in pieces
                    raise DataError(f"{shown(path)}: {member.name} is sparse. Write the shard without --sparse.")
                if not member.isreg() or not key:
                    continue
                if not shard.keys or shard.keys[-1] != key:
                    shard.keys.append(key)
                    shard.first.append(len(shard.members))
                number = shard.suffixes.setdefault(suffix, len(shard.suffixes))
                shard.members.append((member.offset_data, member.size, number))
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if not shard.members:
            kind = _COMPRESSED.get(magic)
            problem = f"compressed by {kind}, which allows no random access" if kind else f"no tar file: {error}"
            advice = "Decompress it." if kind else "Correct the pattern."
            raise DataError(f"{shown(path)} is {problem}. {advice}") from error


def _split(name: str) -> tuple[str, str]:
    """Returns the key and the suffix of a member; no key for a name without a suffix, as webdataset skips it."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or not suffix:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
