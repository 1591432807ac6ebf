import pickle

import numpy as np
import pytest
import simplejpeg  # pyright: ignore[reportMissingImports]
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers import DecodeImage, TFExample
from tests.properties import examples
from tests.readers.image_files import encoded
from tests.readers.wire_format import example, field, sequence_example


def test_values_take_the_declared_dtype_and_shape():
    record = example(box=[1, 2, 3, 4], raw=[b"\x01\x00\x02\x00"], flag=[1], name=["é".encode()], data=[b"\xff\0"])
    decoder = TFExample(
        {
            "box": ("int16", [2, 2]),
            "raw": ("uint16", [2]),
            "flag": "bool",
            "name": "str",
            "data": "bytes",
            "weight": ("float32", [], 1.0),
            "more": ("float32", [None, 2]),
            "words": ("str", [None]),
        }
    )
    found = pickle.loads(pickle.dumps(decoder))(record)
    assert found["box"].tolist() == [[1, 2], [3, 4]] and found["box"].dtype == np.int16
    assert found["raw"].tolist() == [1, 2]
    assert found["flag"].dtype == bool and found["flag"].shape == ()
    assert (found["name"], found["data"]) == ("é", b"\xff\0")
    assert found["weight"] == 1 and found["weight"].dtype == np.float32
    assert found["more"].shape == (0, 2) and found["words"].dtype.kind == "U"
    found["box"][:] = 0  # a transform may modify it


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"lable": "int64"}, r"feature 'lable' is missing.* Did you mean label\?"),
        ({"label": "int8"}, "feature 'label': 300 does not fit int8"),
        ({"label": ("int64", [2])}, r"feature 'label' has 1 values, which do not fit the shape \[2\]"),
        ({"xy": ("float32", [None, 2])}, r"feature 'xy' has 3 values, which do not fit the shape \[None, 2\]"),
        ({"xy": ("int32", [3])}, "feature 'xy' holds floats, and its dtype is int32. Read it as float32"),
        ({"label": "str"}, "feature 'label' holds int64, and its dtype is str. Read it as int64"),
        ({"data": "str"}, "feature 'data' is not UTF-8"),
        ({"data": ("int32", [1])}, "feature 'data': 2 bytes are no array of int32"),
    ],
)
def test_values_that_do_not_fit_are_reported_with_the_feature(spec, error):
    with pytest.raises(DataError, match=error):
        TFExample(spec)(example(label=[300], xy=[1.0, 2.0, 3.0], data=[b"\xff\xff"]))


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({}, "features is empty"),
        ({"x": "float33"}, "feature 'x': unknown dtype 'float33'"),
        ({"x": ("float32", [2, None])}, r"feature 'x': shape \[2, None\]. Allowed are integers; the first may be None"),
        ({"x": ("float32", 3)}, r"feature 'x': found \('float32', 3\). Allowed: a dtype, \(dtype, shape\)"),
        ({"x": 3}, "feature 'x': found 3. Allowed: a dtype"),
        ({"x": ("image", [None, 4])}, r"feature 'x': found .*An image has no default, and no None in its size"),
        ({"x": ("image", [4, 4], 0)}, r"feature 'x': found .*An image has no default, and no None in its size"),
    ],
)
def test_invalid_description_of_a_feature_is_refused(spec, error):
    with pytest.raises(DataError, match=error):
        TFExample(spec)


def test_image_is_decoded_and_resized():
    pixels = np.full((4, 6, 3), 200, np.uint8)
    record = example(camera=[simplejpeg.encode_jpeg(pixels)])
    found = TFExample({"camera": "image"})(record)["camera"]
    assert found.shape == (4, 6, 3) and abs(found.astype(int) - pixels).max() <= 2
    assert TFExample({"camera": ("image", [2, 3])})(record)["camera"].shape == (2, 3, 3)
    with pytest.raises(DataError, match=r"size = \(2,\): allowed are two numbers"):
        TFExample({"camera": ("image", [2])})
    with pytest.raises(DataError, match=r"feature 'camera' holds 2 values \(int64\), an image is one value of bytes"):
        TFExample({"camera": "image"})(example(camera=[1, 2]))


def test_function_decodes_a_value():
    depth = np.array([[1, 60000]], np.uint16)
    record = example(depth=[encoded(depth, "PNG")], many=[1, 2])
    decoder = TFExample({"depth": DecodeImage(dtype="uint16", gray=True), "many": ("int8", [2])})
    assert pickle.loads(pickle.dumps(decoder))(record)["depth"][:, :, 0].tolist() == depth.tolist()
    assert repr(decoder) == (
        "TFExample({'depth': DecodeImage(size=None, fit='crop', gray=True, dtype='uint16'), "
        "'many': ('int8', (2,), None)})"
    )
    with pytest.raises(DataError, match="its pixels are uint16, which do not fit uint8"):
        TFExample({"depth": "image"})(record)
    with pytest.raises(
        DataError, match=r"feature 'many' holds 2 values \(int64\), its function takes one value of bytes"
    ):
        TFExample({"many": DecodeImage()})(record)
    steps = sequence_example({"id": [1]}, {"depth": [[encoded(depth, "PNG")]] * 2})
    found = TFExample(sequences={"depth": DecodeImage(dtype="uint16", gray=True)}).inferred([steps])(steps)
    assert (found["depth"].shape, found["id"]) == ((2, 1, 2, 1), 1)


def test_inference_needs_one_kind_of_values():
    with pytest.raises(DataError, match="feature 'x' is int64 in one record and float32 in another"):
        TFExample().inferred([example(x=[1]), example(x=[1.5])])
    with pytest.raises(DataError, match="the records hold no features"):
        TFExample().inferred([b"", field(2, 5)])
    assert TFExample({"x": "int8"}).inferred([]).features


STEPS = {"speed": [[0.5], [1.5]], "box": [[1, 2], [3, 4]], "ids": [[7], [8, 9]], "tag": [[b"a"], [b"b"]]}


def test_context_and_sequences_are_read():
    record = sequence_example({"id": [5], "name": [b"x"]}, STEPS)
    sequences = {"speed": "float32", "box": ("int16", [2]), "ids": ("int64", [None]), "tag": "str", "no": "float32"}
    decoder = TFExample({"id": "int64"}, sequences)
    found = pickle.loads(pickle.dumps(decoder))(record)
    assert sorted(found) == ["box", "id", "ids", "no", "speed", "tag"]
    assert (found["id"], found["speed"].tolist(), found["box"].tolist()) == (5, [0.5, 1.5], [[1, 2], [3, 4]])
    assert [step.tolist() for step in found["ids"]] == [[7], [8, 9]]
    assert (found["tag"].tolist(), found["no"].shape, found["box"].dtype) == (["a", "b"], (0,), np.int16)
    assert TFExample({"id": "int64"})(record) == {"id": 5}
    assert repr(TFExample({"id": "int64"})) == "TFExample({'id': ('int64', (), None)})"  # as before sequences
    assert "sequences={'speed': ('float32', (), None)}" in repr(TFExample({"id": "int64"}, {"speed": "float32"}))


def test_all_sequences_are_inferred():
    records = [
        sequence_example({"id": [5]}, STEPS),
        sequence_example({"id": [6]}, {"speed": [[2.0]], "box": [], "tag": []}),
    ]
    found = TFExample().inferred(records)(records[0])
    assert (found["id"].shape, found["speed"].tolist(), found["tag"].tolist()) == ((), [0.5, 1.5], [b"a", b"b"])
    assert (found["box"].tolist(), [step.tolist() for step in found["ids"]]) == ([[1, 2], [3, 4]], [[7], [8, 9]])
    found = TFExample().inferred(records)(records[1])
    assert (found["speed"].tolist(), found["box"].shape, found["tag"].shape) == ([2.0], (0, 0), (0,))
    only = TFExample(sequences={"speed": "float32"}).inferred(records)(records[0])
    assert sorted(only) == ["id", "speed"]
    assert sorted(TFExample()(records[0])) == ["box", "id", "ids", "speed", "tag"]


def test_sequences_that_cannot_be_told_apart_or_inferred_are_refused():
    with pytest.raises(DataError, match="'x' is a feature of the context and a sequence"):
        TFExample()(sequence_example({"x": [1]}, {"x": [[1]]}))
    with pytest.raises(DataError, match="sequence 'x' has no values in the first records"):
        TFExample()(sequence_example({"y": [1]}, {"x": []}))
    with pytest.raises(DataError, match="sequence 'x' is int64 in one record and float32 in another"):
        TFExample().inferred([sequence_example({}, {"x": [[1], [1.5]]})])


def test_later_entry_of_a_name_counts_and_unpacked_values_are_read():
    unpacked = field(3, field(1, 5) + field(1, -6))
    entry = field(1, b"x") + field(2, unpacked)
    record = example(x=[1]) + field(1, field(1, entry))
    assert TFExample({"x": ("int64", [None])})(record)["x"].tolist() == [5, -6]


def test_zeros_at_the_end_of_bytes_are_kept_in_a_list():
    found = TFExample({"x": ("bytes", [None])})(example(x=[b"a\0", b"b\0"]))["x"]
    assert found.tolist() == [b"a\0", b"b\0"]


RECORD = example(label=[300, -1], xy=[1.0, 2.0], name=[b"a", b"bc"])
DECODERS = (
    TFExample({"label": ("int64", [None]), "xy": ("float32", [None]), "name": ("str", [None])}),
    TFExample(),
)


@examples(400)
@given(st.lists(st.tuples(st.integers(0, len(RECORD) - 1), st.integers(0, 255)), max_size=3), st.integers(0, 20))
def test_damaged_record_is_read_or_raises_a_data_error(changes, cut):
    record = bytearray(RECORD)
    for position, value in changes:
        record[position] = value
    for decoder in DECODERS:
        try:
            decoder(bytes(record[: len(record) - cut]))
        except DataError as error:
            assert str(error)
