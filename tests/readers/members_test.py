import gzip
import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.readers.members import default_decoder
from tests.properties import examples

SUFFIXES = ("txt", "cls", "json", "npy", "npz", "json.gz", "bin")


def test_suffix_selects_the_decoder():
    assert default_decoder("caption.txt")("é".encode()) == "é"
    assert default_decoder("cls")(b" 7\n").tolist() == 7
    assert default_decoder("bin")(b"\0") == b"\0"
    for decoder in (default_decoder("txt.gz"), pickle.loads(pickle.dumps(default_decoder("txt.gz")))):
        assert decoder(gzip.compress(b"a")) == "a"


def test_json_becomes_arrays_and_text():
    found = default_decoder("json")(
        b'{"box": [[1, 2], [3, 4]], "speed": 1.5, "on": true, "name": "a", "tags": ["b", "cd"], "rest": [[1], [2, 3]],'
        b' "none": null, "empty": [], "objects": [{"id": 1}], "large": 36893488147419103232}'
    )
    assert found["box"].tolist() == [[1, 2], [3, 4]] and found["box"].dtype == np.int64
    assert found["speed"].dtype == np.float64 and found["on"].dtype == bool
    assert found["name"] == "a" and found["tags"].tolist() == ["b", "cd"]
    assert [part.tolist() for part in found["rest"]] == [[1], [2, 3]]
    assert found["none"] is None and found["empty"].shape == (0,)
    assert found["objects"][0]["id"] == 1
    assert found["large"] == 2**65


def test_arrays_of_numpy_are_read_without_pickles():
    file = io.BytesIO()
    np.savez(file, a=np.arange(3), b=np.ones(2))
    assert default_decoder("npz")(file.getvalue())["a"].tolist() == [0, 1, 2]
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="is no array of NumPy: Object arrays cannot be loaded"):
        default_decoder("npy")(file.getvalue())
    for suffix in ("pyd", "x.pickle", "pt"):
        with pytest.raises(DataError, match=f"members .{suffix} hold objects whose loading runs code of the file"):
            default_decoder(suffix)


def valid(suffix):
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(4))
    np.savez(archive, a=np.arange(4))
    json = b'{"a": [1, 2, {"b": 2.5}]}'
    return {"txt": b"text", "cls": b"12", "json": json, "npy": array.getvalue(), "npz": archive.getvalue()}.get(
        suffix, gzip.compress(json, mtime=0)
    )


@examples(150)
@given(st.sampled_from(SUFFIXES), st.binary(max_size=30), st.integers(0, 500), st.booleans())
def test_damaged_member_is_read_or_raises_a_data_error(suffix, noise, at, insert):
    data = valid(suffix)
    at %= len(data)
    data = data[:at] + noise + data[at if insert else at + len(noise) :]
    try:
        default_decoder(suffix)(data)
    except DataError as error:
        assert pickle.loads(pickle.dumps(error)).args == error.args
