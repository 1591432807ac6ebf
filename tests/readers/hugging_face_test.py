import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.base.errors import DataError
from engine.readers import DecodeImage, HuggingFace
from engine.readers.hugging_face import files_as_bytes

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "hugging_face.json").read_text())


def test_dataset_is_read_as_its_own_library_reads_it():
    source = HuggingFace(str(FIXTURES / "hugging_face"))
    assert len(source) == len(GOLDEN["rows"])
    for index, expected in enumerate(GOLDEN["rows"]):
        found = source[index]
        assert isinstance(found["image"], bytes)
        for name, value in expected.items():
            assert np.asarray(found[name]).tolist() == value
    assert source[0]["grid"].dtype == np.int16
    assert source[0]["box"].dtype == np.float32
    assert source.features["label"]["names"] == ["car", "bus", "tram"]


def test_images_are_decoded_also_in_a_pickled_copy():
    source = HuggingFace(str(FIXTURES / "hugging_face"), columns=["image", "label"], decode={"image": DecodeImage()})
    for found in (source[7], pickle.loads(pickle.dumps(source))[7]):
        assert found["image"].shape == (4, 6, 3)
        assert found["image"][0, 0].tolist() == [7, 14, 248]


def test_split_with_shuffled_rows_and_split_with_chosen_columns():
    train = HuggingFace(str(FIXTURES / "hugging_face_splits"), split="train")
    assert [train[i]["id"] for i in range(len(train))] == GOLDEN["train"]
    test = HuggingFace(str(FIXTURES / "hugging_face_splits"), split="test")
    assert test[0] == {"label": 1}
    assert HuggingFace(str(FIXTURES / "hugging_face_splits"), split="test", columns=["id"])[0] == {"id": "é7"}
    assert train.fingerprint() != test.fingerprint()


def test_features_that_are_lists_are_accepted(tmp_path):
    folder = shutil.copytree(FIXTURES / "hugging_face", tmp_path / "copy")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["box"] = [{"dtype": "float32", "_type": "Value"}]  # so before version 4, as for chat messages
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert np.asarray(HuggingFace(str(folder))[0]["box"]).tolist() == GOLDEN["rows"][0]["box"]


def test_files_in_lists_and_structs_are_bytes(tmp_path):
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.struct(
        [("many", pa.list_(file)), ("two", pa.list_(file, 2)), ("more", pa.large_list(file)), ("n", "int8")]
    )
    images = [{"bytes": b"%d" % i, "path": None} for i in range(4)]
    rows = [
        {"many": images[:1], "two": images[:2], "more": [], "n": 1},
        None,
        {"many": images[1:], "two": images[2:], "more": images[:2], "n": 2},
        {"many": images, "two": None, "more": images[:1], "n": 3},
    ]
    table = pa.table({"x": pa.array([None, *rows], kind)[1:]})
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    source = HuggingFace(str(tmp_path))
    for row, many, two, more in ((0, "0", "01", ""), (2, "123", "23", "01")):
        found = source[row]["x"]
        assert [b"".join(found[name]).decode() for name in ("many", "two", "more")] == [many, two, more]
    for row, name in ((1, "x.many"), (3, "x.two")):
        with pytest.raises(DataError, match=f"column {name} is null"):
            source[row]
    # datasets itself writes whole arrays; a slice has other offsets.
    part = files_as_bytes(table.column("x").chunk(0).slice(2))
    assert part.to_pylist()[0] == {"many": [b"1", b"2", b"3"], "two": [b"2", b"3"], "more": [b"0", b"1"], "n": 2}
    part.validate(full=True)


def test_dataset_with_a_list_of_indices_is_refused(tmp_path):
    folder = shutil.copytree(FIXTURES / "hugging_face", tmp_path / "copy")
    state = json.loads((folder / "state.json").read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"its rows are chosen by a list of indices.* save it again by save_to_disk"):
        HuggingFace(str(folder))


def test_wrong_folder_and_split_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no state.json, so this is no dataset that save_to_disk"):
        HuggingFace(str(tmp_path))
    with pytest.raises(DataError, match=r"split = 'tran': allowed are train, test. Did you mean train"):
        HuggingFace(str(FIXTURES / "hugging_face_splits"), split="tran")
    with pytest.raises(DataError, match=r"split = None: allowed are train, test"):
        HuggingFace(str(FIXTURES / "hugging_face_splits"))
    with pytest.raises(DataError, match=r"the folder holds one dataset without splits"):
        HuggingFace(str(FIXTURES / "hugging_face"), split="train")


def test_incomplete_folder_is_refused(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "hugging_face", folder)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: no such file, but state.json lists it"):
        HuggingFace(str(folder))
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json: lists no files"):
        HuggingFace(str(folder))
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: cannot be read"):
        HuggingFace(str(folder))
