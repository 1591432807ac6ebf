import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.record import decode, encode

EXAMPLE = {
    "image": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "agents": [
        {"position": np.array([1.5, -2.5], np.float32), "valid": np.array([True, False, True])},
        (np.int64(2**40), np.array(0.1), None),
    ],
    "empty": np.zeros((0, 3), np.float16),
    "count": 7,
    "id": "Zürich-\u65e5",
    "meta": {"raw": b"\0a\0", "words": np.array(["a", "bcd"]), "empty": ""},
}


def same(a, b):
    if isinstance(b, dict):
        return type(a) is dict and a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if b is None or isinstance(b, str | bytes):
        return type(a) is type(b) and a == b
    b = np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def test_decode_returns_structure_shapes_and_dtypes():
    assert same(decode(encode(EXAMPLE, "example 0")), EXAMPLE)


def test_records_can_differ_in_shape():
    for size in (0, 1, 5):
        example = {"points": np.ones((size, 3), np.float32), "id": np.int32(size)}
        assert same(decode(encode(example, "")), example)


def test_transposed_and_big_endian_arrays_keep_their_values():
    transposed, swapped = np.arange(6).reshape(2, 3).T, np.arange(3, dtype=">i4")
    found = decode(encode([transposed, swapped], ""))
    assert found[0].tolist() == transposed.tolist()
    assert found[1].tolist() == [0, 1, 2]


class Custom:
    pass


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (
            {"meta": {"when": np.datetime64("2020")}},
            "example 3/meta/when has dtype datetime64.*: allowed are bool, int",
        ),
        (
            {"odd": Custom()},
            "example 3/odd: objects of type Custom cannot be written. Records hold dicts, lists, tuples",
        ),
        ({"odd": [np.array([None])]}, "example 3/odd/0: objects of type ndarray cannot be written"),
        ({1: np.zeros(2)}, "example 3: key 1 is not a string"),
    ],
)
def test_unsupported_value_raises_data_error_with_its_path(example, text):
    with pytest.raises(DataError, match=text):
        encode(example, "example 3")


def test_foreign_record_raises_data_error():
    with pytest.raises(DataError, match=r"was not written by convoy. Write the file with `convoy data write`"):
        decode(b"\x80\x04K\x01.")


def test_truncated_record_raises_data_error():
    record = encode(EXAMPLE, "")
    with pytest.raises(DataError, match=f"has {len(record) - 8} bytes, but its header says {len(record)}"):
        decode(record[:-8])


@pytest.mark.parametrize("entry", [b'["|O",[1]]', b'["<f4",[-1]]', b'{"call":[]}', b"[[]", b'["<f4"]'])
def test_damaged_header_raises_data_error(entry):
    record = b"CVR1" + len(entry).to_bytes(4, "little") + entry
    with pytest.raises(DataError, match="header of the record is damaged"):
        decode(record + b"\0" * 64)
