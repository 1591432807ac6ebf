"""Reads JSON Lines files as a stream: one JSON value on each line, in plain or compressed files."""

import contextlib
import gzip
import importlib.util
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.base.errors import DataError
from engine.base.types import Json
from engine.data.examples import Example
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, SPEC_TRIES
from engine.data.streams.stream import BaseStream
from engine.readers.decoders import decode, decoder_name, find_decoder
from engine.readers.files import Pattern, file_names, find_files, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.json_values import find_json_values
from engine.storage.mounts import shown

BLOCK = 1 << 20  # bytes that are decompressed at once
ZSTD_BLOCK = 1 << 16  # compressed bytes read at once, which may hold many times as much
MOST_SHARDS = 256  # files that are read at the same time: a process may often open only 1,024

type Item = tuple[bytes, str]
"""A line, and the file and the offset of the line for error texts."""


class JsonLines(BaseStream):
    """Stream of the lines of JSON Lines files (`.jsonl`), also compressed (`.gz`, `.zst`).

    Each file is a shard; of more than 256 files, a shard has several. By default, the lines of all files are counted
    once at each start. A position is the number of a file of the shard and the offset of a line in the decompressed
    file. A plain file is opened at this offset; a compressed file is decompressed up to it.

    Args:
        pattern: path or list of paths; shell wildcards and bucket addresses are allowed.
        decoder: what makes an example from the value of a line: a function of the value, or its dotted path. By
            default the value, an object, is the example: its numbers and lists of numbers become arrays, and text stays
            on the host. The numbers of a field have the dtype of the first examples of the first file.
        count: False does not count the lines, for files that are too large for it. The run then has no epochs.
        dtypes: field of the default example, such as "pose.speed" -> dtype, instead of that of the first examples.

    Raises:
        DataError: no file matches, `dtypes` names an unknown field, or a file is compressed by zstd and zstandard is
            not installed.
        ConfigError: the path of the decoder does not exist.
    """

    def __init__(
        self,
        pattern: Pattern,
        decoder: str | Callable[[Any], Any] | None = None,
        count: bool = True,
        dtypes: Mapping[str, str] | None = None,
    ):
        self._paths = find_files(pattern, "JSON Lines")
        self.file_states = FileStates(self._paths)
        self.shards = min(len(self._paths), MOST_SHARDS)
        if any(path.endswith(".zst") for path in self._paths) and importlib.util.find_spec("zstandard") is None:
            raise DataError("Files that end in .zst need zstandard, which is not installed: pip install zstandard.")
        if decoder is not None and dtypes:
            raise DataError("dtypes: the decoder makes the example. Remove dtypes, or the decoder.")
        if decoder is None:
            decoder = find_json_values([""], lambda _: self._first_values(), dtypes)[""]
        self._decoder = find_decoder(decoder, "decoder")
        if count:
            self.counts = self._counts

    def open(self, shard: int, position: Json) -> Iterator[tuple[Item, Json]]:
        """Yields the lines of a shard from a position on, each with the position after it; leaves empty lines out."""
        at: Any = position or (0, 0)
        first, offset = at
        for number, path in enumerate(self._files(shard)[first:], first):
            self.file_states.check(path)
            with _open_decompressed(path) as file:
                _skip(file, offset)
                for line in file:
                    start, offset = offset, offset + len(line)
                    if not line.isspace():
                        yield (line, f"{shown(path)}, at byte {start}"), (number, offset)
            offset = 0

    def decode(self, item: Item) -> Example:
        """Returns the example of a line. Raises DataError if it is no JSON or does not fit the decoder."""
        line, where = item
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: json.loads failed: {type(error).__name__}: {error}.") from error
        return decode(self._decoder, value, where)

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, a hash of all names, and the decoder."""
        decoder = f"decoder {decoder_name(self._decoder)}".replace(SEPARATOR, " ")
        return SEPARATOR.join([*sampled_files(self._paths), f"names {digest(file_names(self._paths))}", decoder])

    def _files(self, shard: int) -> list[str]:
        return self._paths[shard :: self.shards]

    def _first_values(self) -> list[Any]:
        """Returns the values of the first lines of the first file that can be read."""
        values = []
        with contextlib.suppress(Exception):  # reported when the lines are counted or read
            for (line, _), _ in itertools.islice(self.open(0, None), SPEC_TRIES):
                with contextlib.suppress(ValueError, RecursionError):
                    values.append(json.loads(line))
        return values

    def _counts(self) -> list[int]:
        return [sum(map(_count, self._files(shard))) for shard in range(self.shards)]


def _count(path: str) -> int:
    """Returns the number of lines of a file that are not empty. Raises DataError."""
    try:
        with _open_decompressed(path) as file:
            return sum(not line.isspace() for line in file)
    except Exception as error:  # gzip and zlib raise errors of several kinds
        raise DataError(f"{shown(path)} cannot be read: {error}. Copy or write the file again.") from error


def _open_decompressed(path: str) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_Zstd(path), BLOCK)
    return open(path, "rb", buffering=-1)


class _Zstd(io.RawIOBase):
    """The decompressed content of a file of zstd frames.

    The reader of zstandard itself takes a truncated file for a complete one. Raises EOFError for such a file, and
    OSError for a damaged one.
    """

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115, closed by close()
        self._frame: Any = None  # the decompressor of a frame whose end is not yet read
        self._stored = self._found = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._found:
            stored = self._stored or self._file.read(ZSTD_BLOCK)
            if not stored and self._frame is None:
                return 0
            if not stored:
                raise EOFError("the file ends within its compressed data")
            self._decompress(stored)
        size = min(len(buffer), len(self._found))
        buffer[:size], self._found = self._found[:size], self._found[size:]
        return size

    def _decompress(self, stored: bytes) -> None:
        import zstandard  # pyright: ignore[reportMissingImports]

        try:
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._found, self._stored = frame.decompress(stored), frame.unused_data
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._frame = None if frame.eof else frame


def _skip(file: io.BufferedIOBase, offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (found := file.read(min(BLOCK, offset))):
        offset -= len(found)
