"""Writes the rows of FOLDER/inputs.json as Parquet and Arrow files and reads them, by pyarrow. Imports no engine.

results.json has the Python values that pyarrow reads from the Parquet file; decimals are text.
"""

import json
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    {
        "flat": pa.list_(pa.int32()),
        "lanes": pa.list_(pa.list_(pa.float64())),
        "deep": pa.list_(pa.list_(pa.list_(pa.int16()))),
        "boxes": pa.list_(pa.struct({"x": pa.float32(), "ids": pa.list_(pa.int64())})),
        "tags": pa.map_(pa.string(), pa.int32()),
        "counts": pa.map_(pa.int64(), pa.float64()),
        "price": pa.decimal128(12, 3),
        "exact": pa.decimal128(38, 12),
        "whole": pa.decimal128(18, 0),
        "name": pa.string(),
        "speed": pa.float32(),
    }
)
DECIMALS = ("price", "exact", "whole")


def typed(row):
    """Returns a row with the types that pyarrow takes for decimals and maps."""
    decimals = {name: Decimal(row[name]) for name in DECIMALS}
    return row | decimals | {name: list(map(tuple, row[name])) for name in ("tags", "counts")}


def main(folder):
    """Writes the files and reads one of them again."""
    rows = json.loads((folder / "inputs.json").read_text())["sets"]
    table = pa.Table.from_pylist(list(map(typed, rows)), SCHEMA)
    pq.write_table(table, folder / "rows.parquet", row_group_size=7)
    for ending, new in (("arrow", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with new(str(folder / f"rows.{ending}"), SCHEMA) as writer:
            writer.write_table(table, max_chunksize=5)
    found = pq.read_table(folder / "rows.parquet").to_pylist()
    results = [row | {name: str(row[name]) for name in DECIMALS} for row in found]
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
