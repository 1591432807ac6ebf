"""Reading and writing bundles: what was cut, changed or made by a newer version ends with one sentence."""

import json
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.bundles import bundle
from engine.bundles.bundle import Bundle
from engine.bundles.manifest import MANIFEST, Array, BundleError, EntryPoint, entry_json

ENTRY = EntryPoint(
    "predict", {"x": Array(("n", 4), "float32"), "mask": Array(("n", 4), "bool")}, {}, {}, "samples", 1e-5, ()
)


def make(path):
    """Writes a small bundle."""
    files = {"a/data": bundle.save_arrays({"x": np.arange(6.0).reshape(2, 3)}), "b": b"text"}
    bundle.write(path, {"format": 1, "entries": {"predict": entry_json(ENTRY)}}, files)
    return Bundle(path)


@pytest.mark.parametrize("name", ["folder", "file.zip"])
def test_written_files_are_read(tmp_path, name):
    found = make(tmp_path / name)
    found.check_files()
    assert found.read("b") == b"text" and found.entry("predict") == ENTRY
    np.testing.assert_array_equal(bundle.load_arrays(found.read("a/data"))["x"], [[0, 1, 2], [3, 4, 5]])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.bool_, np.int64])
def test_arrays_keep_shape_and_dtype(dtype):
    x = np.arange(6).reshape(3, 2).astype(dtype).T
    found = bundle.load_arrays(bundle.save_arrays({"x": x, "empty": x[:0, :0], "one": x[0, 0]}))
    assert found["x"].dtype == dtype and found["empty"].shape == (0, 0) and found["one"].shape == ()
    np.testing.assert_array_equal(found["x"], x)


def test_every_damage_is_named(tmp_path):
    path = tmp_path / "b"
    make(path)
    content = (path / "a/data").read_bytes()
    for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (path / "a/data").write_bytes(changed)
        with pytest.raises(BundleError, match="b: a/data was changed or cut"):
            Bundle(path).check_files()
    (path / "a/data").unlink()
    with pytest.raises(BundleError, match="a/data is missing"):
        Bundle(path).check_files()
    (path / "a/data").write_bytes(content)
    (path / "new").write_text("x")
    with pytest.raises(BundleError, match="new does not belong to the bundle"):
        Bundle(path).check_files()


def test_damaged_manifests_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / "b"
    text = json.loads((make(path).path / MANIFEST).read_text())
    for change, expected in (
        (b"", "is damaged"),
        (b"{}", "is damaged"),
        (b"[1]", "is damaged"),
        (
            json.dumps({**text, "format": 2}).encode(),
            "the bundle has format 2, and this version of Convoy reads formats",
        ),
        (
            json.dumps({**text, "entries": {"predict": {}}}).encode(),
            r"is damaged \(entries.predict.inputs is",
        ),
        (json.dumps({**text, "entries": 3}).encode(), "is damaged"),
    ):
        (path / MANIFEST).write_bytes(change)
        with pytest.raises(BundleError, match=expected):
            Bundle(path)
    (tmp_path / "cut.zip").write_bytes(make(tmp_path / "x.zip").path.read_bytes()[:-30])
    for other in ("cut.zip", "none", "."):
        with pytest.raises(BundleError, match="is no bundle"):
            Bundle(tmp_path / other)


def test_zip_file_has_no_times_and_sorted_names(tmp_path):
    with zipfile.ZipFile(make(tmp_path / "b.zip").path) as file:
        assert [info.date_time for info in file.infolist()] == [(1980, 1, 1, 0, 0, 0)] * 3
        assert file.namelist() == ["a/data", "b", MANIFEST]


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, "x is missing. Inputs: x float32[n, 4], mask bool[n, 4]."),
        ({"x": np.zeros((2, 4), np.float32), "y": 1}, "y is no input"),
        ({"x": np.zeros((2, 4)), "mask": np.zeros((2, 4), bool)}, "x is float64[2, 4], but the program takes float32"),
        ({"x": np.zeros((2, 5), np.float32), "mask": np.zeros((2, 4), bool)}, "x is float32[2, 5]"),
        ({"x": np.zeros(4, np.float32), "mask": np.zeros((2, 4), bool)}, "x is float32[4]"),
        (
            {"x": np.zeros((2, 4), np.float32), "mask": np.zeros((3, 4), bool)},
            "mask is bool[3, 4], but the program takes bool[n, 4] with n=2",
        ),
    ],
)
def test_wrong_inputs_are_named(inputs, problem):
    with pytest.raises(BundleError, match=re.escape(f"here: {problem}")):
        bundle.checked_inputs(ENTRY, inputs, "here")


@pytest.mark.parametrize("prefix", ["", "bundles/digits/"])
def test_zip_file_of_a_packed_folder_is_read(tmp_path, prefix):
    make(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as file:
        for path in sorted((tmp_path / "b").rglob("*")):  # with entries for folders, as other programs write them
            file.write(path, f"{prefix}{path.relative_to(tmp_path / 'b').as_posix()}")
    found = Bundle(tmp_path / "packed.zip")
    found.check_files()
    assert found.read("b") == b"text"


def test_nothing_else_is_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="a file exists there, and it is no bundle"):
        make(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot be written \(.*\). Choose another path"):
        make(tmp_path / "file" / "b")
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_entry_point_and_program_are_named(tmp_path):
    found = make(tmp_path / "b")
    with pytest.raises(BundleError, match=r"no entry point 'predic'. Did you mean predict\? Found: predict"):
        found.function("predic")
    with pytest.raises(BundleError, match="predict has no StableHLO program"):
        found.function("predict")
