"""Reads Arrow and Feather files (extra `parquet`), mapped into memory. The smallest read is a record batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.base.errors import DataError
from engine.readers.blocks import BlockCache
from engine.readers.decoders import Decoder
from engine.readers.extras import import_extra
from engine.readers.files import Pattern, find_files
from engine.readers.tables import CACHE_BYTES, Grouping, Tables

FILE_MAGIC = b"ARROW1"  # first bytes of the file format
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Arrow(Tables):
    """Source of the rows of Arrow files, in the file format (also called Feather) or the stream format.

    An example is a dict by column, as of `Parquet`. Uncompressed files are read at random without decoding more than
    the rows asked for.
    """

    def __init__(
        self,
        pattern: Pattern,
        columns: Sequence[str] | Mapping[str, Any] | None = None,
        group_by: str | None = None,
        one_per_file: bool = False,
        constant: Sequence[str] = (),
        decode: Mapping[str, str | Decoder] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        """Opens files, as `Parquet` does, with the same arguments. Raises DataError as `Parquet`."""
        import_extra("pyarrow", "parquet", "Arrow files")
        super().__init__(
            find_files(pattern, "Arrow"),
            ArrowFormat(cache_bytes),
            Grouping(group_by, one_per_file, constant),
            columns=columns,
            decode=decode,
            cache_bytes=cache_bytes,
        )


class ArrowFormat:
    """The file and the stream format of Arrow.

    A stream can only be read from its begin, so the batches of the latest streams are kept: of a mapped file, these are
    only addresses; compressed batches take up to `cache_bytes` of memory, or that of one stream.
    """

    name = "Arrow"

    def __init__(self, cache_bytes: int):
        self._streams = BlockCache(cache_bytes, _read_stream)

    def schema(self, path: str) -> Any:
        return _open(path)[0].schema

    def block_rows(self, path: str) -> list[int]:
        reader, is_file = _open(path, [0])  # in a compressed file, only the first column is decompressed
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else self._streams.get(path)
        return [batch.num_rows for batch in batches]

    def read(self, path: str, block: int | None, columns: list[str]) -> Any:
        import pyarrow as pa

        reader, is_file = _open(path)
        chosen = [name for name in columns if name in reader.schema.names]
        if is_file:
            reader, _ = _open(path, [reader.schema.get_field_index(name) for name in chosen])
            return reader.read_all() if block is None else pa.Table.from_batches([reader.get_batch(block)])
        batches = self._streams.get(path)
        return pa.Table.from_batches(batches if block is None else [batches[block]]).select(chosen)


def _read_stream(path: str) -> tuple[list[Any], int]:
    """Returns the record batches of a stream, and the bytes of memory that they take: those outside the mapped file."""
    import pyarrow as pa

    file = pa.memory_map(path).read_buffer()
    if file.size < len(END_OF_STREAM) or file.slice(file.size - len(END_OF_STREAM)).to_pybytes() != END_OF_STREAM:
        raise DataError("the end of the stream is missing")
    batches = list(pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(use_threads=False)))
    buffers = {
        buffer.address: buffer.size
        for batch in batches
        for column in batch.columns
        for buffer in column.buffers()
        if buffer is not None and not file.address <= buffer.address < file.address + file.size
    }
    return batches, sum(buffers.values())


def _open(path: str, columns: list[int] | None = None) -> tuple[Any, bool]:
    """Returns a reader of a mapped file, and whether this has the file format, not the stream format."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    file = pa.memory_map(path)
    is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
    file.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file, options=options), is_file
