import gzip
import json
import re

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.adapt import as_source
from engine.data.batches import Batches
from engine.data.streams.cursor import StreamReadError
from engine.data.streams.source import StreamSource
from engine.readers.json_lines import JsonLines

OBJECTS = [{"id": f"n{i}", "x": [i, i + 0.5], "label": i % 3, "on": i > 4} for i in range(10)]
LINES = [json.dumps(found).encode() + b"\n" for found in OBJECTS]


def write(path, lines=LINES, opener=open):
    with opener(path, "wb") as file:
        file.write(b"".join(lines))
    return str(path)


def zstd(path, mode):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.open(path, mode)


@pytest.mark.parametrize(("name", "opener"), [("a.jsonl", open), ("a.jsonl.gz", gzip.open), ("a.jsonl.zst", zstd)])
def test_file_is_read_from_any_position(tmp_path, name, opener):
    stream = JsonLines(write(tmp_path / name, [b"\n", *LINES[:4], b"  \n", *LINES[4:-1], LINES[-1].rstrip()], opener))
    items = list(stream.open(0, None))
    assert [json.loads(item[0]) for item, _ in items] == OBJECTS
    for number, (_, position) in enumerate(items, 1):
        assert [item for item, _ in stream.open(0, position)] == [item for item, _ in items[number:]]
    assert (stream.shards, stream.counts()) == (1, [10])


def test_values_become_arrays_and_text(tmp_path):
    stream = JsonLines(write(tmp_path / "a.jsonl", [b'{"a": [[1, 2]], "b": "x", "c": {"d": true}, "e": ["p"]}\n']))
    found = stream.decode(next(stream.open(0, None))[0])
    assert (found["a"].tolist(), found["b"], found["c"]["d"].tolist(), found["e"]) == ([[1, 2]], "x", True, ["p"])
    batch = Batches(as_source(JsonLines(write(tmp_path / "b.jsonl")), "data"), 4, 0, False)[0].examples
    np.testing.assert_array_equal(batch["x"], np.array([[i, i + 0.5] for i in range(4)], np.float32))
    assert "id" not in batch and batch["label"].dtype == np.int32


def test_number_has_the_dtype_of_the_first_examples(tmp_path):
    lines = [b'{"v": 0.5, "n": 3, "on": 1}\n', b'{"v": 1, "n": 2.0, "on": 1}\n', b'{"v": 1, "n": 2.5, "on": 1}\n']
    path = write(tmp_path / "a.jsonl", lines[:1] * 20 + lines[1:])
    source = as_source(JsonLines(path), "data")
    assert [source[20][name].dtype for name in "vn"] == [np.float64, np.int64]
    with pytest.raises(DataError, match=r'field n is an integer in the first examples, but holds 2.5. .*dtypes={"n": '):
        source[21]
    source = as_source(JsonLines(path, dtypes={"n": "float32"}), "data")
    assert [source[i]["n"].tolist() for i in (0, 21)] == [3, 2.5] and source[0]["n"].dtype == np.float32
    with pytest.raises(DataError, match="dtypes: the decoder makes the example"):
        JsonLines(path, len, dtypes={"n": "float32"})


def test_files_are_shards_that_are_read_in_turn(tmp_path):
    for name, part in (("b", LINES[6:]), ("a", LINES[:6])):
        write(tmp_path / f"{name}.jsonl", part)
    source = as_source(JsonLines(f"{tmp_path}/*.jsonl"), "data")
    assert len(source) == 10
    assert sorted(source[i]["x"][0] for i in range(10)) == list(range(10))
    uncounted = as_source(JsonLines(f"{tmp_path}/*.jsonl", count=False), "data")
    assert isinstance(uncounted, StreamSource) and uncounted.counts is None and uncounted[3]["x"][0] == 7


def test_shard_of_several_files_is_read_from_any_position(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.readers.json_lines.MOST_SHARDS", 2)
    for name, part in (("a", LINES[:3]), ("b", LINES[3:4]), ("c", []), ("d", LINES[4:6]), ("e", LINES[6:])):
        write(tmp_path / f"{name}.jsonl", part)
    stream = JsonLines(f"{tmp_path}/*.jsonl")
    assert (stream.shards, stream.counts()) == (2, [7, 3])
    items = list(stream.open(0, None))
    assert [json.loads(item[0]) for item, _ in items] == OBJECTS[:3] + OBJECTS[6:]
    for number, (_, position) in enumerate(items, 1):
        stored = json.loads(json.dumps(position))
        assert [item for item, _ in stream.open(0, stored)] == [item for item, _ in items[number:]]
    assert items[3][0][1].endswith("e.jsonl, at byte 0")


def test_decoder_makes_the_example(tmp_path):
    stream = JsonLines(write(tmp_path / "a.jsonl"), decoder=lambda found: {"y": np.float32(found["x"][1])})
    assert as_source(stream, "data")[2]["y"] == 2.5


@pytest.mark.parametrize("line", [b"{\n", b"\xff\n", b'{"x": [1, null]}\n', b'{"x": null}\n'])
def test_line_that_cannot_be_decoded_names_the_file_and_the_offset(tmp_path, line):
    source = as_source(JsonLines(write(tmp_path / "a.jsonl", [LINES[0], line, LINES[1]])), "data")
    with pytest.raises(DataError, match=rf"^Example 1 of .*JsonLines: .*a\.jsonl, at byte {len(LINES[0])}: "):
        source[1]
    assert source[2]["id"] == "n1"


def test_truncated_file_and_missing_file_are_reported(tmp_path):
    whole = tmp_path / "a.jsonl.gz"
    write(whole, LINES * 50, gzip.open)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"^{re.escape(str(whole))} cannot be read: .* Copy or write the file again"):
        as_source(JsonLines(str(whole)), "data")
    source = as_source(JsonLines(str(whole), count=False), "data")
    with pytest.raises(StreamReadError, match=r"cannot be read at its example .*EOFError"):
        source[499]
    with pytest.raises(DataError, match="no such file"):
        JsonLines(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "damage", [lambda stored: stored[:-30], lambda stored: stored + b"more", lambda stored: 10 * b"no frame"]
)
def test_damaged_zstd_file_is_reported(tmp_path, damage):
    path = tmp_path / "a.jsonl.zst"
    write(path, LINES * 50, zstd)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))} cannot be read: .* Copy or write the file again"):
        JsonLines(str(path)).counts()


def test_zstd_file_may_have_several_frames(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    write(path, LINES, zstd)
    path.write_bytes(3 * path.read_bytes())
    assert JsonLines(str(path)).counts() == [30]


def test_fingerprint_changes_with_the_content_and_the_decoder(tmp_path):
    found = {JsonLines(write(tmp_path / "a.jsonl", lines)).fingerprint() for lines in (LINES, LINES[1:], LINES[::-1])}
    assert len(found | {JsonLines(write(tmp_path / "a.jsonl"), decoder=len).fingerprint()}) == 4


def test_fingerprint_changes_with_the_size_of_any_file(tmp_path):
    paths = [write(tmp_path / f"{i:02}.jsonl", LINES[:1]) for i in range(40)]
    first = JsonLines(paths).fingerprint()
    write(tmp_path / "39.jsonl", LINES[:2])
    assert JsonLines(paths).fingerprint() != first
