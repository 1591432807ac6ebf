import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.base.errors import DataError
from engine.readers import Arrow
from tests.readers.table_files import write

FIXTURES = Path(__file__).parent / "fixtures"


def test_feather_sweep_of_pandas_is_one_example():
    source = Arrow(str(FIXTURES / "argoverse2/sweep.feather"), one_per_file=True)
    found = source[0]
    assert found["x"].dtype == np.float16
    assert found["x"].tolist() == np.linspace(-5, 5, 20).astype(np.float16).tolist()
    assert found["intensity"].dtype == np.uint8
    assert source.lengths().tolist() == [20]


def test_feather_boxes_of_pandas_are_grouped_by_time():
    source = Arrow(str(FIXTURES / "argoverse2/annotations.feather"), group_by="timestamp_ns")
    assert [source[i]["timestamp_ns"] for i in range(len(source))] == [10, 20]
    assert source[0]["category"].tolist() == ["BUS", "DOG"]


def test_compressed_file_of_polars_is_read():
    source = Arrow(str(FIXTURES / "polars.arrow"))
    assert source[5]["points"].tolist() == [[5.0, k] for k in range(5)]
    assert (source[5]["kind"], source[5]["name"]) == ("car", "scene-5")


def test_stream_that_lost_its_last_batches_is_refused(tmp_path):
    """Such a file ends where a batch ends, so that it looks like a shorter one."""
    path = Path(write(tmp_path, "stream", pa.table({"x": range(12)})))
    whole = path.read_bytes()
    ends = [n for n in range(0, len(whole), 8) if whole[n : n + 4] == b"\xff" * 4]  # begins of the messages
    path.write_bytes(whole[: ends[-2]])
    with pytest.raises(DataError, match="not a complete Arrow file: the end of the stream is missing"):
        Arrow(str(path))


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # its import fails
    with pytest.raises(DataError, match=r"Arrow files need pyarrow.*: pip install .*\[parquet\]'"):
        Arrow("a.arrow")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_compressed_streams_take_bounded_memory(tmp_path, compression):
    table = pa.table({"x": np.zeros((4, 100_000), np.int64).sum(0)})
    for i in range(6):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(tmp_path / f"{i}.arrow", table.schema, options=options) as writer:
            writer.write_table(table)
    before = pa.total_allocated_bytes()
    source = Arrow(f"{tmp_path}/*.arrow", cache_bytes=2 * table.nbytes)
    assert [source[i * table.num_rows]["x"].tolist() for i in range(6)] == [0] * 6
    kept = pa.total_allocated_bytes() - before
    assert kept < 0.5 * table.nbytes if compression is None else kept < 5 * table.nbytes
