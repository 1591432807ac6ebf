"""Table files for tests, and what readers of them have in common."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.data.batches import Batches
from engine.data.reader import read
from engine.readers import Arrow, Parquet

FORMATS = {"parquet": Parquet, "arrow": Arrow, "lz4": Arrow, "stream": Arrow}
"""Name of a format -> its reader. lz4 is a compressed Arrow file, stream is Arrow's stream format."""


def write(folder: Path, kind: str, table: pa.Table, block: int = 4, name: str = "a") -> str:
    """Writes a table in blocks of so many rows, and returns the path of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / f"{name}.{kind}")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=block)
    else:
        options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=block)
    return path


def labels(source: object, start: int = 0, stop: int = 12, workers: int = 0) -> list[list[int]]:
    """Returns the labels of some shuffled batches of 4."""
    batches = Batches(source, 4, 7, True)  # pyright: ignore[reportArgumentType]
    reader = read(batches, range(start, stop), threads=2 if workers == 0 else 0, workers=workers, prefetch=2)
    try:
        return [batch.examples["label"].tolist() for batch in reader]
    finally:
        reader.close()
