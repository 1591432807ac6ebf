"""Safetensors files: what is read of them, and damaged files and folders, each of which ends with one sentence."""

import json
import random
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.base.errors import CheckpointError
from engine.hub.weights import Weights

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16),
    "c": np.array(3, np.float16),
}


@pytest.fixture
def folder(tmp_path):
    save_file({"a": ARRAYS["a"]}, tmp_path / "model-1.safetensors")
    save_file({name: ARRAYS[name] for name in "bc"}, tmp_path / "model-2.safetensors")
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    write_index(tmp_path, {"weight_map": files})
    return tmp_path


def write_index(folder, content):
    (folder / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))


def refusal(path):
    with pytest.raises(CheckpointError) as error:
        Weights(path, "init.checkpoint")
    return str(error.value)


def test_parts_of_arrays_of_several_files_are_read(folder):
    weights = Weights(folder, "x")
    assert {name: str(one) for name, one in weights.arrays.items()} == {
        "a": "F32 [2, 3, 4]",
        "b": "BF16 [6]",
        "c": "F16 []",
    }
    np.testing.assert_array_equal(weights.read("a", (slice(1, 2), slice(0, 3), slice(1, 3))), ARRAYS["a"][1:2, :, 1:3])
    found = weights.read("b", (slice(2, 5),))
    assert found.dtype == ml_dtypes.bfloat16 and found.tolist() == [2, 3, 4]
    assert weights.read("c", ()) == 3


def test_folder_without_an_index_and_one_file(folder):
    (folder / "model.safetensors.index.json").unlink()
    assert sorted(Weights(folder, "x").arrays) == ["a", "b", "c"]
    assert sorted(Weights(folder / "model-2.safetensors", "x").arrays) == ["b", "c"]
    save_file({"a": ARRAYS["a"]}, folder / "again.safetensors")
    assert "both have an array 'a'" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no index of safetensors files"),
        ({"weights": {}}, "KeyError('weight_map')"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "'../outside.safetensors', which is no safetensors file of"),
        ({"weight_map": {"a": "other.bin"}}, "'other.bin', which is no safetensors file"),
        ({"weight_map": {"a": 5}}, "is no index of safetensors files"),
        ("[" * 100_000, "is no index of safetensors files"),
        ({"weight_map": {"a": "model-3.safetensors"}}, "1 of 1 files of model.safetensors.index.json are missing"),
    ],
)
def test_bad_index_is_refused(folder, content, words):
    write_index(folder, content)
    assert words in refusal(folder)


def test_files_of_pytorch_are_refused_with_the_line_that_converts_them(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / "model.bin"):
        text = refusal(path)
        assert "weights_only=True" in text and f"torch.load('{tmp_path / 'model.bin'}'" in text
    (tmp_path / "model.bin").unlink()
    (tmp_path / "notes.txt").write_text("")
    assert "no safetensors file found. The folder has: notes.txt." in refusal(tmp_path)


def test_damaged_files_end_with_a_sentence_or_equal_values(tmp_path):
    """A changed byte of a value cannot be found: safetensors has no checksums. All else is refused or read as it is."""
    file = tmp_path / "model.safetensors"
    save_file({name: ARRAYS[name] for name in "ab"}, file)
    whole, draw, refused = file.read_bytes(), random.Random(0), 0
    (header,) = struct.unpack("<Q", whole[:8])
    for _ in range(500):
        data = bytearray(whole)
        kind = draw.randrange(4)
        if kind == 0:
            del data[draw.randrange(len(data)) :]
        elif kind == 1:
            size = draw.choice([0, 1, header - 1, header + 1, len(data), 2**40, 2**63, 2**64 - 1])
            data[:8] = struct.pack("<Q", size)
        elif kind == 2:
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(8, 8 + header)] = draw.randrange(256)
        else:
            text = whole[8 : 8 + header].replace(
                draw.choice([b"96", b"[2,3,4]", b"F32", b"BF16", b"[6]", b"[0,"]),
                draw.choice([b"-1", b"[2,3,40]", b"F99", b"[]", b"[4294967296,4294967296]", b"[0,9", b"null"]),
            )
            data = bytearray(struct.pack("<Q", len(text)) + text + whole[8 + header :])
        file.write_bytes(data)
        try:
            weights = Weights(file, "init.checkpoint")
            for name, one in weights.arrays.items():
                found = weights.read(name, [slice(0, size) for size in one.shape])
                assert found.shape == one.shape and found.nbytes <= len(data)
        except CheckpointError as error:
            assert str(error).startswith("init.checkpoint: ") and "cannot be read" in str(error)
            refused += 1
    assert refused > 300
