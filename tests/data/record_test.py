import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data.record import decode, encode

EXAMPLE = {
    "image": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "agents": [
        {"position": np.array([1.5, -2.5], np.float32), "valid": np.array([True, False, True])},
        (np.int64(2**40), np.array(0.1), None),
    ],
    "empty": np.zeros((0, 3), np.float16),
    "count": 7,
}


def same(one, two):
    if isinstance(two, dict):
        return type(one) is dict and one.keys() == two.keys() and all(same(one[key], two[key]) for key in two)
    if isinstance(two, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if two is None:
        return one is None
    two = np.asarray(two)
    return one.dtype == two.dtype and one.shape == two.shape and np.array_equal(one, two)


def test_an_example_comes_back_with_its_structure_shapes_and_dtypes():
    assert same(decode(encode(EXAMPLE, "example 0")), EXAMPLE)


def test_examples_of_different_shapes_each_come_back():
    for size in (0, 1, 5):
        example = {"points": np.ones((size, 3), np.float32), "id": np.int32(size)}
        assert same(decode(encode(example, "")), example)


def test_arrays_that_are_transposed_or_big_endian_come_back_as_numbers():
    transposed, swapped = np.arange(6).reshape(2, 3).T, np.arange(3, dtype=">i4")
    found = decode(encode([transposed, swapped], ""))
    assert found[0].tolist() == transposed.tolist()
    assert found[1].tolist() == [0, 1, 2]


class Custom:
    pass


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ({"meta": {"name": "a"}}, "example 3/meta/name has dtype <U1: allowed are bool, integers"),
        ({"meta": [b"raw"]}, r"example 3/meta/0 has dtype \|S3: allowed"),
        ({"odd": Custom()}, "example 3/odd: Custom cannot be written. Records hold dicts, lists, tuples"),
        ({"odd": [np.array([None])]}, "example 3/odd/0: ndarray cannot be written"),
        ({1: np.zeros(2)}, "example 3: key 1 is no text"),
    ],
)
def test_what_a_record_cannot_hold_is_refused_by_its_path(example, text):
    with pytest.raises(DataError, match=text):
        encode(example, "example 3")


def test_a_record_of_somebody_else_is_refused():
    with pytest.raises(DataError, match=r"was not written by convoy. Write the file with `convoy data write`"):
        decode(b"\x80\x04K\x01.")


def test_a_record_that_was_cut_is_refused():
    record = encode(EXAMPLE, "")
    with pytest.raises(DataError, match=f"has {len(record) - 8} bytes, its header says {len(record)}"):
        decode(record[:-8])


@pytest.mark.parametrize("entry", [b'["|O",[1]]', b'["<f4",[-1]]', b'{"call":[]}', b"[[]", b'["<f4"]'])
def test_a_damaged_header_builds_nothing(entry):
    record = b"CVR1" + len(entry).to_bytes(4, "little") + entry
    with pytest.raises(DataError, match="header of the record is damaged"):
        decode(record + b"\0" * 64)
