"""Finds the messages of MCAP logs, and reads them at random. The format: https://mcap.dev/spec.

A log is a sequence of records: an opcode (uint8), the length of the content (uint64), and the content. Chunks hold
compressed records, and an index of the messages of a chunk follows it.
"""

import functools
import io
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from engine.base.errors import DataError
from engine.readers.blocks import BlockCache
from engine.readers.record_files import RecordFiles
from engine.readers.saved_index import Index
from engine.storage.mounts import shown

FORM = "mcap-2"
MAGIC = b"\x89MCAP0\r\n"
CACHE_BYTES = 64 << 20  # decompressed chunks that a source keeps: neighbouring messages often share one
RECORD = struct.Struct("<BQ")
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX = 2, 3, 4, 5, 6, 7


class Schema(NamedTuple):
    """The type of the messages of a channel."""

    name: str
    encoding: str
    data: bytes


class Messages:
    """Reads the messages of logs at the places that `build_index` has found. Threads may share it.

    Args:
        files: the logs.
    """

    def __init__(self, files: RecordFiles):
        self._files = files
        self._chunks = BlockCache(CACHE_BYTES, functools.partial(_read_chunk, files))

    def __getstate__(self):
        return self._files

    def __setstate__(self, files):
        self.__init__(files)

    def read(self, file: int, chunk: int, offset: int) -> bytes:
        """Returns the data of a message.

        Args:
            file: number of the log.
            chunk: where its chunk begins; -1 if it is in none.
            offset: where its record begins, in the decompressed chunk or in the log.

        Raises:
            DataError: it is damaged.
        """
        if chunk < 0:
            _, size = RECORD.unpack(self._files.read(file, offset, RECORD.size))
            content = self._files.read(file, offset + RECORD.size, size)
        else:
            records = self._chunks.get(file, chunk)
            content = b""
            if 0 <= offset <= len(records) - RECORD.size:
                _, size = RECORD.unpack_from(records, offset)
                content = records[offset + RECORD.size : offset + RECORD.size + size]
        if len(content) < MESSAGE.size:
            raise DataError(f"byte {offset}: there is no message. The log is damaged: try `mcap recover`.")
        return content[MESSAGE.size :]


def _read_chunk(files: RecordFiles, file: int, position: int) -> tuple[bytes, int]:
    """Returns the decompressed records of a chunk, and their size."""
    _, size = RECORD.unpack(files.read(file, position, RECORD.size))
    found = decompressed(files.read(file, position + RECORD.size, size), position)
    return found, len(found)


def decompressed(content: bytes, position: int) -> bytes:
    """Returns the records in a chunk. Raises DataError if it is damaged, or its compression is unknown."""
    from mcap.data_stream import ReadDataStream
    from mcap.records import Chunk
    from mcap.stream_reader import get_chunk_data_stream

    try:
        chunk = Chunk.read(ReadDataStream(io.BytesIO(content)))
        stream, size = get_chunk_data_stream(chunk, validate_crc=True)
        return stream.read(size)
    except Exception as error:  # the compression libraries raise errors of their own
        raise DataError(
            f"the chunk at byte {position} cannot be read: {type(error).__name__}: {error}. Try `mcap recover`."
        ) from error


def build_index(path: str) -> Index:
    """Returns where the messages of a log lie, in the order of their log times.

    `time` (nanoseconds), `channel`, `chunk` and `offset` `[messages]`, see `Messages.read`; `id`, `topic`, `encoding`
    and `schema` `[channels]`, the number of its schema or -1; of the schemas, see `read_schemas`. `damage` holds the
    byte at which a damaged or incomplete log ends.

    Raises:
        DataError: the file is no MCAP log.
    """
    builder = _Builder(path)
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise DataError(f"{shown(path)}: no MCAP log. Correct the pattern.")
        position, complete = len(MAGIC), False
        while not complete and position + RECORD.size <= length:
            file.seek(position)
            opcode, size = RECORD.unpack(file.read(RECORD.size))
            if size > length - position - RECORD.size or not opcode:
                break
            if opcode in (_SCHEMA, _CHANNEL, _MESSAGE_INDEX, _CHUNK) or (opcode == _MESSAGE and size >= MESSAGE.size):
                # Of a message, only its header; a chunk is only read if it has no index.
                builder.add(opcode, position, file.read({_MESSAGE: MESSAGE.size, _CHUNK: 0}.get(opcode, size)))
            complete = opcode == _FOOTER
            position += RECORD.size + size
        for chunk in builder.unindexed():
            file.seek(chunk)
            _, size = RECORD.unpack(file.read(RECORD.size))
            builder.add_chunk(chunk, file.read(size))
    return builder.index(None if complete else position)


def read_schemas(index: Index) -> list[Schema]:
    """Returns the schemas in an index of `build_index`."""
    ends = index["schema_end"].tolist()
    return [
        Schema(name.decode(), encoding.decode(), index["schema_data"][begin:end].tobytes())
        for name, encoding, begin, end in zip(
            index["schema_name"].tolist(), index["schema_encoding"].tolist(), [0, *ends], ends, strict=False
        )
    ]


class _Builder:
    """Collects the channels and messages of one log."""

    def __init__(self, path: str):
        self._path = path
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, tuple[bytes, bytes, int]] = {}  # topic, encoding, schema
        self._parts: list[np.ndarray] = []  # [messages, 4]: time, channel, chunk, offset
        self._chunks: list[int] = []
        self._indexed: set[int] = set()
        self._damage: int | None = None

    def add(self, opcode: int, position: int, content: bytes) -> None:
        if opcode == _CHUNK:
            self._chunks.append(position)
        elif opcode in (_SCHEMA, _CHANNEL):
            self._add_definition(opcode, content)
        elif opcode == _MESSAGE:
            channel, _, time, _ = MESSAGE.unpack(content)
            self._add_message(time, channel, -1, position)
        elif self._chunks and len(content) >= 6:
            (channel,) = struct.unpack_from("<H", content)
            pairs = np.frombuffer(content, "<i8", (len(content) - 6) // 16 * 2, 6).reshape(-1, 2)
            rest = np.full((len(pairs), 2), [channel, self._chunks[-1]], np.int64)
            self._parts.append(np.concatenate([pairs[:, :1], rest, pairs[:, 1:]], axis=1))
            self._indexed.add(self._chunks[-1])

    def _add_message(self, time: int, channel: int, chunk: int, offset: int) -> None:
        self._parts.append(np.array([[min(time, 2**63 - 1), channel, chunk, offset]], np.int64))

    def unindexed(self) -> list[int]:
        """Returns the chunks to read: those without an index; all if channels are missing, which chunks describe."""
        known = all(int(channel) in self._channels for part in self._parts for channel in np.unique(part[:, 1]))
        known &= all(schema in self._schemas or not schema for _, _, schema in self._channels.values())
        return [chunk for chunk in self._chunks if not known or chunk not in self._indexed]

    def add_chunk(self, position: int, content: bytes) -> None:
        """Adds the channels in a chunk, and its messages if it has no index."""
        try:
            records = decompressed(content, position)
            found = list(_records(records))
        except DataError:
            self._damage = position if self._damage is None else self._damage
            return
        for opcode, offset, body in found:
            if opcode in (_SCHEMA, _CHANNEL):
                self._add_definition(opcode, body)
            elif opcode == _MESSAGE and len(body) >= MESSAGE.size and position not in self._indexed:
                channel, _, time, _ = MESSAGE.unpack_from(body)
                self._add_message(time, channel, position, offset)

    def _add_definition(self, opcode: int, content: bytes) -> None:
        """Adds a channel or a schema."""
        from mcap.data_stream import ReadDataStream
        from mcap.records import Channel
        from mcap.records import Schema as SchemaRecord

        kind = Channel if opcode == _CHANNEL else SchemaRecord
        try:
            found: Any = kind.read(ReadDataStream(io.BytesIO(content)))
        except Exception as error:
            raise DataError(
                f"{shown(self._path)}: a {kind.__name__.lower()} is damaged: {error}. Try `mcap recover`."
            ) from error
        if opcode == _SCHEMA:
            self._schemas[found.id] = Schema(found.name, found.encoding, found.data)
        else:
            self._channels[found.id] = (found.topic.encode(), found.message_encoding.encode(), found.schema_id)

    def index(self, damage: int | None) -> Index:
        table = np.concatenate(self._parts) if self._parts else np.zeros((0, 4), np.int64)
        table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 0]))]
        damage = self._damage if damage is None else damage
        used = sorted({schema for _, _, schema in self._channels.values()} & set(self._schemas))
        schemas = [self._schemas[number] for number in used]
        numbers = {number: position for position, number in enumerate(used)}
        return {
            **{name: table[:, i].copy() for i, name in enumerate(("time", "channel", "chunk", "offset"))},
            "id": np.array(list(self._channels), np.int64),
            "topic": np.array([topic for topic, _, _ in self._channels.values()], np.bytes_),
            "encoding": np.array([encoding for _, encoding, _ in self._channels.values()], np.bytes_),
            "schema": np.array([numbers.get(schema, -1) for _, _, schema in self._channels.values()], np.int64),
            "schema_name": np.array([schema.name.encode() for schema in schemas], np.bytes_),
            "schema_encoding": np.array([schema.encoding.encode() for schema in schemas], np.bytes_),
            "schema_end": np.cumsum([len(schema.data) for schema in schemas], dtype=np.int64),
            "schema_data": np.frombuffer(b"".join(schema.data for schema in schemas), np.uint8),
            "damage": np.array([] if damage is None else [damage], np.int64),
        }


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields (opcode, offset, content) of the records in a chunk. Raises DataError if the last is incomplete."""
    offset = 0
    while offset < len(data):
        end = offset + RECORD.size
        if end > len(data) or (end := end + RECORD.unpack_from(data, offset)[1]) > len(data):
            raise DataError(f"byte {offset} of a chunk: the record is incomplete.")
        yield data[offset], offset, data[offset + RECORD.size : end]
        offset = end
