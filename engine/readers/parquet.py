"""Reads Parquet files (extra `parquet`). The smallest read is a row group, so the latest row groups are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.readers.decoders import Decoder
from engine.readers.extras import import_extra
from engine.readers.files import Pattern, find_files
from engine.readers.tables import CACHE_BYTES, Grouping, Tables


class Parquet(Tables):
    """Source of the rows of Parquet files: a dict of arrays, numbers and text by column.

    A list becomes an array, and a list of lists of several lengths a list of arrays. A struct becomes a dict, and so
    does a map with text as keys; another map becomes a dict of the arrays `key` and `value`. A time is an integer in
    its unit. A decimal is int64 if it has no digits after the point, else float64; more digits than these hold are an
    error. An example with a null cannot be read, unless `columns` has a value for it.
    Shuffled reading is fast if `cache_bytes` holds all row groups, or if these are small (some hundred rows). Else
    convert the files with `convoy data write`.
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
        """Opens files; of their content, only the column `group_by` is read.

        Args:
            pattern: path or list of paths; shell wildcards and bucket addresses (`storage/mounts.py`) are allowed.
            columns: names of the columns to read, or name -> value in place of a null, None for no such value. The
                value of a struct is a dict by field, such as {"pose": {"speed": 0.0}}. The value of a list or a map
                stands for their elements; a null list becomes an empty one. Default: all columns.
            group_by: name of a column. The consecutive rows with one value of this column are an example, with arrays
                `[rows, ...]`, and the value itself once.
            one_per_file: all rows of a file are an example. A file is opened only when its example is read.
            constant: columns with one value in all rows of an example, which then holds this value once.
            decode: column -> function of the value in an example that returns what replaces it, such as
                `engine.readers.DecodeImage()`; or its dotted path.
            cache_bytes: bound on the memory of the row groups that are kept.

        Raises:
            DataError: no file matches, a file is damaged, or a column does not exist or holds something else than
                numbers and text; or pyarrow is missing.
        """
        import_extra("pyarrow.parquet", "parquet", "Parquet files")
        super().__init__(
            find_files(pattern, "Parquet"),
            ParquetFormat(),
            Grouping(group_by, one_per_file, constant),
            columns=columns,
            decode=decode,
            cache_bytes=cache_bytes,
        )


class ParquetFormat:
    """The format of Parquet files."""

    name = "Parquet"

    def schema(self, path: str) -> Any:
        import pyarrow.parquet as pq

        return pq.read_schema(path)

    def block_rows(self, path: str) -> list[int]:
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(path)
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def read(self, path: str, block: int | None, columns: list[str]) -> Any:
        import pyarrow.parquet as pq

        # Several threads read at once, so each read uses one thread.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if block is None:
                return file.read(columns=columns, use_threads=False)
            return file.read_row_group(block, columns=columns, use_threads=False)
