import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.writer import Writer  # pyright: ignore[reportMissingImports]

from engine.base.errors import DataError
from engine.data.ragged.padded import Padded
from engine.readers import DecodeImage, Mcap
from tests.readers.image_files import encoded, picture

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "mcap.json").read_text())
DTYPES = {
    "ros2": {"run": "uint64", "sign": "int8", "covariance": "float64", "flags": "bool", "score": "float32"},
    "protobuf": {"time": "int64", "run": "uint64", "last": "bool", "offsets": "int32"},
}


@pytest.fixture(params=DTYPES)
def log(request, tmp_path):
    """A log that the library of an encoding has written."""
    return Path(shutil.copy(FIXTURES / f"{request.param}.mcap", tmp_path))


def plain(value: Any) -> Any:
    """Returns an example as JSON values."""
    if isinstance(value, dict):
        return {name: plain(child) for name, child in value.items()}
    return list(value) if isinstance(value, bytes) else np.asarray(value).tolist()


def columns(rows: list[Any], names: dict[str, Any]) -> Any:
    """Returns the messages of a list as a dict of lists; `names` has the names of their fields."""
    return {
        name: columns([row[name] for row in rows], child) if isinstance(child, dict) else [row[name] for row in rows]
        for name, child in names.items()
    }


def write(path, topic, encoding, schema, data=b""):
    with open(path, "wb") as file:
        writer = Writer(file)
        writer.start()
        number = writer.register_schema(*schema)
        writer.add_message(writer.register_channel(topic, encoding, number), 0, data, 0)
        writer.finish()
    return str(path)


def ros2(path, text, name="a_msgs/msg/A"):
    return write(path, "/a", "cdr", (name, "ros2msg", text.encode()), bytes(40))


def test_messages_are_those_that_the_library_reads(log):
    source = pickle.loads(pickle.dumps(Mcap(str(log), "/detections")))
    golden = GOLDEN[log.stem]["/detections"]
    assert len(source) == len(golden)
    for index, expected in enumerate(golden):
        found = source[index]["/detections"]
        rows = {name for name, value in found.items() if isinstance(value, dict) and isinstance(expected[name], list)}
        assert rows == {"objects", "counts"} & set(expected)
        expected = {name: columns(value, found[name]) if name in rows else value for name, value in expected.items()}
        assert plain(found) == expected
        assert {name: str(found[name].dtype) for name in DTYPES[log.stem]} == DTYPES[log.stem]
        assert found["objects"]["size"].dtype == np.float32


def kinds(message):
    return message["objects"]["kind"]


def test_decode_replaces_a_topic_or_a_field(log):
    source = Mcap(str(log), "/detections", decode={"/detections": "tests.readers.mcap_types_test.kinds"})
    padded = Padded(source, fields="/detections", lengths=4)
    counts = [len(message["objects"]) for message in GOLDEN[log.stem]["/detections"]]
    assert [int(padded[i]["mask"].sum()) for i in range(len(padded))] == counts
    whole = Mcap(str(log), "/detections")
    assert source.fingerprint() != whole.fingerprint()
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()
    field = Mcap(str(log), "/detections", decode={"/detections.objects.size": "numpy.sum"})
    assert [field[i]["/detections"]["objects"]["size"] for i in range(4)] == [
        whole[i]["/detections"]["objects"]["size"].sum() for i in range(4)
    ]
    unknown = Mcap(str(log), "/detections", decode={"/detections.object.size": "numpy.sum"})
    with pytest.raises(DataError, match=r"decode names the field /detections.object.size, which does not exist"):
        unknown[0]
    with pytest.raises(DataError, match=r"decode: '/camera.data' is no field of a topic that is read"):
        Mcap(str(log), "/detections", decode={"/camera.data": "numpy.sum"})


def test_camera_image_of_ros2_is_decoded_from_its_field(tmp_path):
    jpeg = encoded(picture(16, 24, seed=0), "JPEG")
    cdr = b"\0\1\0\0" + (5).to_bytes(4, "little") + b"jpeg\0" + b"\0" * 3 + len(jpeg).to_bytes(4, "little") + jpeg
    path = write(tmp_path / "a.mcap", "/camera", "cdr", ("a/Image", "ros2msg", b"string format\nuint8[] data"), cdr)
    found = Mcap(path, "/camera", decode={"/camera.data": DecodeImage()})[0]["/camera"]
    assert found["format"] == "jpeg"
    assert np.array_equal(found["data"], DecodeImage()(jpeg))


def test_types_that_cannot_be_decoded_are_named(tmp_path):
    for text, error in (
        ("wstring x", r"a.mcap: topic '/a': the type a_msgs/A has a field of type wstring, which cannot be decoded"),
        ("B b", r"topic '/a': the type a_msgs/B is not defined in the log. Name a decoder of your own"),
        ("A[] a", r"topic '/a': the type a_msgs/A contains itself"),
        ("float32", r"topic '/a': the definition of the type a_msgs/A is damaged: 'float32'. Try"),
    ):
        with pytest.raises(DataError, match=error):
            Mcap(ros2(tmp_path / "a.mcap", text), "/a")
    idl = write(tmp_path / "a.mcap", "/a", "cdr", ("a/A", "ros2idl", b"struct A {};"))
    with pytest.raises(DataError, match=r"'/a' is encoded as cdr with a schema in ros2idl, which needs a decoder"):
        Mcap(idl, "/a")
    broken = write(tmp_path / "a.mcap", "/a", "protobuf", ("test.A", "protobuf", b"\xff\xff"))
    with pytest.raises(DataError, match=r"a.mcap: topic '/a': the descriptors of test.A are damaged"):
        Mcap(broken, "/a")


def test_logs_with_other_fields_are_not_mixed(tmp_path):
    ros2(tmp_path / "a.mcap", "float32 x # in m\nstring<=4 name")
    ros2(tmp_path / "b.mcap", "float32 x\nuint8 N=1\nstring name")
    assert Mcap(f"{tmp_path}/*.mcap", "/a")[1]["/a"].keys() == {"x", "name"}
    ros2(tmp_path / "c.mcap", "float64 x\nstring name")
    with pytest.raises(DataError, match=r"topic '/a' has other fields in \S+c.mcap than in \S+a.mcap. Read these logs"):
        Mcap(f"{tmp_path}/*.mcap", "/a")


def test_message_that_is_cut_off_is_a_data_error(tmp_path):
    path = write(tmp_path / "a.mcap", "/a", "cdr", ("a/A", "ros2msg", b"float64[3] x"), bytes(20))
    with pytest.raises(DataError, match=r"a.mcap, message of /a at 0 ns, /a: is no a/A, or is damaged: "):
        Mcap(path, "/a")[0]


@pytest.mark.parametrize("module", ["mcap_ros2.decoder", "mcap_protobuf.decoder"])
def test_missing_library_is_named_with_its_extra(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    log = shutil.copy(FIXTURES / f"{'ros2' if 'ros2' in module else 'protobuf'}.mcap", tmp_path)
    with pytest.raises(DataError, match=r"need mcap-\w+, which is not .*pip install .*\[mcap\]'"):
        Mcap(str(log), "/detections")
