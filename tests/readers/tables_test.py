import contextlib
import json
import os
import pickle
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.ragged.packing import Packed
from engine.data.ragged.padded import Padded
from engine.readers import Arrow, JsonLines, Parquet
from tests.readers.table_files import FORMATS, labels, write

ROWS = 30


def table(rows=ROWS, first=0):
    numbers = np.arange(first, first + rows)
    return pa.table(
        {
            "label": pa.array(numbers, pa.int32()),
            "x": pa.array([[i / 2, 1.0] for i in numbers], pa.list_(pa.float32(), 2)),
            "name": [f"scene {i}" for i in numbers],
            "scene": [f"s{i // 7}" for i in numbers],
            "city": ["north" if i < 14 else "south" for i in numbers],
            "track": [{"points": [[i, k] for k in range(i % 3)], "id": str(i)} for i in numbers],
        }
    )


@pytest.fixture(params=list(FORMATS))
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path, kind):
    return write(tmp_path, kind, table())


def test_example_holds_the_columns_of_its_row(path, kind):
    source = FORMATS[kind](path)
    assert len(source) == ROWS
    found = source[17]
    assert found["label"] == 17
    assert found["label"].dtype == np.int32
    assert found["x"].tolist() == [8.5, 1.0]
    assert (found["name"], found["scene"], found["track"]["id"]) == ("scene 17", "s2", "17")
    assert found["track"]["points"].tolist() == [[17, 0], [17, 1]]
    assert [source[i]["name"] for i in range(ROWS)] == [f"scene {i}" for i in range(ROWS)]
    with pytest.raises(IndexError):
        source[ROWS]


def test_take_equals_single_examples(path, kind):
    source = FORMATS[kind](path, columns=["label", "x", "name"])
    indices = np.array([29, 3, 3, 0, 11])
    found = source.take(indices)
    assert sorted(found) == ["label", "name", "x"]
    for row, index in enumerate(indices.tolist()):
        for name, value in source[index].items():
            assert np.array_equal(found[name][row], value)


def test_rows_of_one_value_are_an_example(path, kind):
    source = FORMATS[kind](path, group_by="scene", constant=["city"], columns=["label", "name", "scene", "city"])
    assert len(source) == 5
    assert source.lengths().tolist() == [7, 7, 7, 7, 2]  # scenes span blocks of 4 rows
    found = source[1]
    assert found["label"].tolist() == list(range(7, 14))
    assert found["name"].tolist() == [f"scene {i}" for i in range(7, 14)]
    assert (found["scene"], found["city"]) == ("s1", "north")


def test_one_example_per_file(tmp_path, kind):
    for number in range(3):
        write(tmp_path, kind, table(5 + number, 100 * number), name=str(number))
    source = FORMATS[kind](str(tmp_path / f"*.{kind}"), one_per_file=True, columns=["label", "x"])
    assert len(source) == 3
    assert source.lengths().tolist() == [5, 6, 7]
    assert source[2]["label"].tolist() == list(range(200, 207))
    assert source[2]["x"].shape == (7, 2)


def test_groups_may_span_files_and_are_padded_and_packed(tmp_path, kind):
    for number in range(2):
        write(tmp_path, kind, table(10, 10 * number), name=str(number))
    source = FORMATS[kind](str(tmp_path / f"*.{kind}"), group_by="scene", columns=["label", "x"])
    assert source[1]["label"].tolist() == list(range(7, 14))
    padded = Padded(source, fields=["label", "x"], lengths=8)
    assert padded[2]["label"].tolist() == [*range(14, 20), 0, 0]
    packed = Packed(source, length=8, fields=["label", "x"], split=False)
    assert sorted(v for i in range(len(packed)) for v in packed[i]["label"][packed[i]["mask"]].tolist()) == list(
        range(20)
    )


def test_batches_resume_exactly_at_any_step(path, kind):
    source = FORMATS[kind](path, columns=["label", "x"], cache_bytes=100)  # about one block
    whole = labels(source)
    assert sorted(label for batch in whole[:7] for label in batch) != list(range(28))  # shuffled over all blocks
    assert len({label for batch in whole[:7] for label in batch}) == 28
    assert labels(source, start=5) == whole[5:]


def test_threads_share_a_source(path, kind):
    source = FORMATS[kind](path, cache_bytes=100)
    found, names = [[] for _ in range(4)], [f"scene {i}" for i in range(ROWS)]

    def read_all(mine):
        mine += [source[i]["name"] for i in range(ROWS)]

    threads = [threading.Thread(target=read_all, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [names] * 4


def test_pickled_source_reads_the_same(path, kind):
    for source in (FORMATS[kind](path), FORMATS[kind](path, group_by="scene", columns=["label"])):
        copy = pickle.loads(pickle.dumps(source))
        assert copy.fingerprint() == source.fingerprint()
        assert copy[3]["label"].tolist() == source[3]["label"].tolist()


def test_fingerprint_depends_on_content_columns_and_grouping_and_not_on_folder(tmp_path, kind):
    reader = FORMATS[kind]
    first = reader(write(tmp_path / "a", kind, table())).fingerprint()
    assert reader(write(tmp_path / "b", kind, table())).fingerprint() == first
    changed = write(tmp_path / "c", kind, table(first=1))
    assert reader(changed).fingerprint() != first
    path = str(tmp_path / "a" / f"a.{kind}")
    others = [reader(path, columns=["label"]), reader(path, group_by="scene"), reader(path, decode={"name": len})]
    assert len({first, *(one.fingerprint() for one in others)}) == 4


def test_decode_replaces_a_column(path, kind):
    source = FORMATS[kind](path, columns=["label", "name"], decode={"name": len, "label": "math.sqrt"})
    assert source[9] == {"label": 3.0, "name": 7}
    assert source.take(np.array([9, 16]))["label"].tolist() == [3.0, 4.0]
    with pytest.raises(DataError, match=r"row 9 of .*: column name: .*ord failed: TypeError"):
        FORMATS[kind](path, decode={"name": ord})[9]


def test_row_with_a_null_is_skipped(tmp_path, kind):
    rows = table().set_column(0, "label", pa.array([None if i == 9 else i for i in range(ROWS)], pa.int32()))
    source = FORMATS[kind](write(tmp_path, kind, rows), columns=["label", "x"])
    with pytest.raises(DataError, match=r"row 9 of .*a\..*: column label is null. Fill it or remove the row"):
        source.take(np.array([8, 9]))
    batches = TolerantBatches(Batches(source, 8, 0, True))
    bad = [bad for n in range(4) for bad in batches[n].bad]
    assert [example.address for example in bad][:1] == [9]
    assert "column label is null" in bad[0].error


def test_damaged_block_makes_only_its_rows_unreadable(tmp_path):
    path = write(tmp_path, "parquet", table(), block=5)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with open(path, "r+b") as file:  # no header of a page begins with these bytes
        file.seek(column.dictionary_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    source = Parquet(path, columns=["label", "x"])
    with pytest.raises(DataError, match=r"row 2 of .*a.parquet: block 0: cannot be read"):
        source[2]
    assert source[5]["label"] == 5
    batches = TolerantBatches(Batches(source, 10, 0, True))
    assert sorted({bad.address for n in range(3) for bad in batches[n].bad}) == [0, 1, 2, 3, 4]


def test_checksum_of_a_page_is_compared(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(table(), path, compression="none", use_dictionary=False, write_page_checksum=True)
    end = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with open(path, "r+b") as file:
        file.seek(end.data_page_offset + end.total_compressed_size - 1)
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 1]))
    with pytest.raises(DataError, match=r"row 2 of .*a.parquet: block 0: cannot be read: .*CRC"):
        Parquet(path)[2]


def test_truncated_file_is_refused(path, kind):
    os.truncate(path, os.path.getsize(path) - 8)
    with pytest.raises(DataError, match=r"a\..*: not a complete (Parquet|Arrow) file: .*Write it again"):
        FORMATS[kind](path)


def test_damaged_file_is_one_bad_example(tmp_path, kind):
    for number in range(3):
        write(tmp_path, kind, table(5, 100 * number), name=str(number))
    os.truncate(tmp_path / f"0.{kind}", 30)
    source = FORMATS[kind](str(tmp_path / f"*.{kind}"), one_per_file=True, columns=["label"])
    with pytest.raises(DataError, match=r"0\..*: cannot be read: .*Write the file again"):
        source[0]
    padded = Padded(source, fields="label", lengths=6)
    batch = TolerantBatches(Batches(padded, 3, 0, False))[0]
    assert [bad.address for bad in batch.bad] == [0]
    assert batch.batch.weight.tolist() == [0, 1, 1]


def test_any_damaged_bytes_give_values_or_a_data_error(path, kind):
    """Unchecked, damaged offsets abort the process."""
    whole = Path(path).read_bytes()
    for seed in range(100):
        rng, data = np.random.default_rng(seed), bytearray(whole)
        for position in rng.integers(len(data), size=3):
            data[position] = rng.integers(256)
        Path(path).write_bytes(data)
        with contextlib.suppress(DataError):
            source = FORMATS[kind](path)
            for index in range(min(len(source), 50)):
                with contextlib.suppress(DataError):
                    source[index]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"columns": ["lable"]}, "columns names the column lable, which it has 0 times. Did you mean label"),
        ({"decode": {"none": len}}, "decode names the column none"),
        ({"columns": ["label"], "decode": {"name": len}}, "decode names the column name"),
        ({"group_by": "none"}, "group_by names the column none"),
        (
            {"group_by": "x"},
            "group_by names the column x of type .*list.* Allowed are columns of numbers, text or times",
        ),
        ({"group_by": "track"}, "group_by names the column track of type struct"),
        ({"group_by": "city", "one_per_file": True}, "group_by and one_per_file exclude each other"),
        ({"constant": ["city"]}, "constant needs examples of several rows"),
    ],
)
def test_wrong_argument_is_named(tmp_path, arguments, error):
    with pytest.raises(DataError, match=error):
        Parquet(write(tmp_path, "parquet", table()), **arguments)


def test_rows_of_a_group_must_be_consecutive(tmp_path):
    path = write(tmp_path, "parquet", pa.table({"scene": ["a", "a", "b", "a"]}))
    with pytest.raises(DataError, match=r"the rows with scene = 'a' are not consecutive. Sort the files"):
        Parquet(path, group_by="scene")


def test_constant_column_with_several_values_is_a_bad_example(tmp_path):
    path = write(tmp_path, "parquet", pa.table({"scene": ["a", "a", "b"], "city": ["x", "y", "z"]}))
    source = Parquet(path, group_by="scene", constant=["city"])
    with pytest.raises(DataError, match=r"row 0 of .* and the 1 rows after it: column city differs between the rows"):
        source[0]
    assert source[1] == {"scene": "b", "city": "z"}


def test_group_whose_lists_differ_in_length_is_a_list_of_arrays(tmp_path):
    table = pa.table({"scene": ["a", "a", "b"], "x": pa.array([[1], [1, 2], [3]], pa.list_(pa.int32()))})
    for block in (1, 3):
        source = Parquet(write(tmp_path, "parquet", table, block), group_by="scene")
        assert [part.tolist() for part in source[0]["x"]] == [[1], [1, 2]]
        assert source[1]["x"].tolist() == [[3]]
        with pytest.raises(DataError, match=r"Example 0 of .*: x holds lists of several lengths, and only the first"):
            Padded(source, fields=["x"], lengths=4)[0]


def json_like(value):
    """Returns an example with its arrays as (dtype, values)."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, str) else (str(leaf.dtype), leaf.tolist()), value)


def test_nested_lists_equal_those_of_json_lines(tmp_path, kind):
    rows: list[dict[str, Any]] = [
        {"flat": [1, 2], "lanes": [[1, 2], [3]], "deep": [[[0.5], [1.5, 2.0]], [[3.0]]], "of": {"a": [[True], []]}},
        {"flat": [3], "lanes": [[1, 2], [3, 4]], "deep": [[[0.5], [2.5]], [[3.0], [4.0]]], "of": {"a": [[True]]}},
        {"flat": [4], "lanes": [[5]], "deep": [[[0.5], [2.5]], [[3.0]]], "of": {"a": [[False, True], [True]]}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = JsonLines(str(tmp_path / "a.jsonl"))
    lines: list[Any] = [stream.decode(item) for item, _ in stream.open(0, None)]
    source = FORMATS[kind](write(tmp_path, kind, pa.Table.from_pylist(rows), block=2))
    assert [json_like(source[i]) for i in range(3)][1:] == [json_like(line) for line in lines][1:]
    first, line = source[0], lines[0]
    assert first["of"]["a"][1].shape == line["of"]["a"][1].shape == (0,)  # JSON does not tell its dtype
    del first["of"], line["of"]
    assert json_like(first) == json_like(line)
    with pytest.raises(DataError, match="Bring all to one shape"):
        Batches(source, 3, 0, False)[0]  # pyright: ignore[reportArgumentType]


def test_maps_decimals_and_filled_nulls(tmp_path, kind):
    table = pa.table(
        {
            "price": pa.array([Decimal("1.25"), None, Decimal("-0.10")], pa.decimal128(9, 2)),
            "tags": pa.array([[("a", 1), ("b", 2)], [("b", 3)], None], pa.map_(pa.string(), pa.int32())),
            "pose": pa.array([{"speed": 1.5}, {"speed": None}, None], pa.struct({"speed": pa.float32()})),
            "name": ["x", None, "z"],
        }
    )
    path = write(tmp_path, kind, table, block=2)
    columns = {"price": Decimal("0"), "tags": 0, "pose": {"speed": -1.0}, "name": ""}
    source = FORMATS[kind](path, columns)
    assert source.columns == ["price", "tags", "pose", "name"]
    assert json_like(source[0]) == {
        "price": ("float64", 1.25),
        "tags": {"a": ("int32", 1), "b": ("int32", 2)},
        "pose": {"speed": ("float32", 1.5)},
        "name": "x",
    }
    assert [source[i]["price"].item() for i in range(3)] == [1.25, 0, -0.1]
    assert [source[i]["name"] for i in range(3)] == ["x", "", "z"]
    assert [source[i]["pose"]["speed"].item() for i in range(3)] == [1.5, -1, -1]
    assert source[2]["tags"] == {}
    plain = FORMATS[kind](path)
    with pytest.raises(
        DataError, match=r"row 1 of .*: column price is null\. Fill it or remove the row, or give a value"
    ):
        plain[1]
    assert source.fingerprint() != plain.fingerprint()
    with pytest.raises(
        DataError, match=r"value for pose.sped, which is no column or field.* Did you mean pose.speed\?"
    ):
        FORMATS[kind](path, {"pose": {"sped": 0}})
    with pytest.raises(DataError, match=r"columns: pose.speed is float, found 'a'. Give a value of its type"):
        FORMATS[kind](path, {"pose": {"speed": "a"}})
    with pytest.raises(DataError, match="columns names the column cost"):
        FORMATS[kind](path, {"cost": None})


def test_empty_file_has_no_constant_value(tmp_path):
    path = write(tmp_path, "parquet", pa.table({"a": pa.array([], pa.int32())}))
    with pytest.raises(DataError, match=r"a.parquet: there are no rows, and so no value of column a"):
        Parquet(path, one_per_file=True, constant=["a"])[0]


def test_files_with_different_types_are_refused(tmp_path):
    write(tmp_path, "arrow", pa.table({"x": [1]}), name="a")
    write(tmp_path, "arrow", pa.table({"x": [1.5]}), name="b")
    with pytest.raises(DataError, match=r"b.arrow: column x is double, but int64 in .*a.arrow. Bring the files to one"):
        Arrow(str(tmp_path / "*.arrow"))
