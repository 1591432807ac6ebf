"""Predictions are written batch by batch, and appear under their name only when they are complete."""

import importlib
import sys

import numpy as np
import pytest

from engine.api.prediction_files import check_prediction_file, open_prediction_file
from engine.base.errors import ConfigError, DataError

NAMES = ["a", "bb", "ccc", "d", "ee"]


def objects(*values):
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def batches():
    """Columns of 5 rows in batches of 2, 2 and 1."""
    rows = {
        "example": np.arange(5),
        "label": np.arange(5, dtype=np.uint8),
        "track": np.arange(60, dtype=np.float32).reshape(5, 4, 3),
        "valid": np.arange(5) % 2 == 0,
        "id": objects(*NAMES),
        "meta/raw": objects(*(b"\0%d" % i for i in range(5))),
    }
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        yield {name: values[part] for name, values in rows.items()}


def write(path, parts=None, overwrite=False):
    with open_prediction_file(path, overwrite) as file:
        for columns in batches() if parts is None else parts:
            file.add(columns)


def test_npz_holds_every_column(tmp_path):
    write(tmp_path / "deep/p.npz")
    with np.load(tmp_path / "deep/p.npz", allow_pickle=False) as found:
        assert sorted(found) == ["example", "id", "label", "meta/raw", "track", "valid"]
        assert found["track"].tolist() == np.arange(60).reshape(5, 4, 3).tolist()
        assert (found["label"].dtype, found["valid"].dtype) == (np.uint8, bool)
        assert found["id"].tolist() == NAMES and found["id"].dtype == "<U3"
        assert found["meta/raw"].tolist() == [b"\0%d" % i for i in range(5)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.npz"]


def test_npz_stores_arrays_of_text_as_json_and_refuses_bytes_that_numpy_would_cut(tmp_path):
    write(tmp_path / "p.npz", [{"words": objects(np.array(["a"]), np.array(["b", "c"]))}])
    assert np.load(tmp_path / "p.npz")["words"].tolist() == ['["a"]', '["b", "c"]']
    write(tmp_path / "p.npz", [{"words": objects(np.array([b"a", b"b"]), np.array([b"\xe9"]))}], overwrite=True)
    assert np.load(tmp_path / "p.npz")["words"].tolist() == ['["a", "b"]', '["\\u00e9"]']
    with pytest.raises(DataError, match=r"q.npz: raw ends with a zero byte.*Write .parquet"):
        write(tmp_path / "q.npz", [{"raw": objects(b"a\0")}])
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


@pytest.mark.parametrize("name", ["p.npz", "p.parquet"])
def test_existing_file_is_replaced_only_by_a_complete_one(name, tmp_path):
    path = tmp_path / name
    write(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"exists already. Choose another name, or add --overwrite"):
        write(path)

    def failing():
        yield next(batches())
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        write(path, failing(), overwrite=True)
    assert path.read_bytes() == before
    write(path, [{"a": np.zeros(1)}], overwrite=True)
    assert path.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_holds_every_column(tmp_path):
    parquet = importlib.import_module("pyarrow.parquet")
    write(tmp_path / "p.parquet")
    found = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert found["track"] == np.arange(60).reshape(5, 4, 3).tolist()
    assert found["id"] == NAMES and found["meta/raw"] == [b"\0%d" % i for i in range(5)]
    assert found["valid"] == [True, False, True, False, True] and found["example"] == list(range(5))
    with pytest.raises(DataError, match=r"z has dtype complex64, which parquet cannot hold. Write .npz"):
        write(tmp_path / "q.parquet", [{"z": np.zeros(2, np.complex64)}])
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_parquet_holds_text_of_batches_without_rows_and_without_words(tmp_path):
    parquet = importlib.import_module("pyarrow.parquet")
    words = [objects(np.array([], str)), np.empty(0, object), objects(np.array(["a", "b"]))]
    write(tmp_path / "p.parquet", [{"words": rows} for rows in words])
    assert parquet.read_table(tmp_path / "p.parquet").to_pydict() == {"words": [[], ["a", "b"]]}


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # its import fails
    with pytest.raises(ConfigError, match=r"pip install .*\[parquet\]', or write .npz"):
        check_prediction_file(tmp_path / "p.parquet", overwrite=False)


@pytest.mark.parametrize("name", ["p.csv", "p"])
def test_unknown_format_is_a_config_error(name, tmp_path):
    with pytest.raises(ConfigError, match=r"Allowed: \.npz, \.parquet"):
        check_prediction_file(tmp_path / name, overwrite=False)


def test_folder_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/p.npz: cannot be written \("):
        write(tmp_path / "file/p.npz")
