"""Bundles that were cut, changed, made by a newer version, or called with wrong arrays end with one sentence."""

import contextlib
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import ConfigError, ConvoyError
from engine.bundles import bundle
from engine.bundles.manifest import FORMAT, MANIFEST, BundleError, file_record, to_text
from engine.bundles.standalone import check
from tests import properties
from tests.bundles import handmade

FILES = ("predict.stablehlo", "weights.safetensors", "samples/predict.safetensors", "check.py")
IMAGE = np.linspace(-1, 1, 4 * handmade.IN, dtype=np.float32).reshape(4, handmade.IN)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A bundle as a folder and as a zip file."""
    folder = tmp_path_factory.mktemp("good")
    written = handmade.write(folder / "toy", onnx=False)
    with zipfile.ZipFile(folder / "toy.zip", "w") as file:
        for path in written.rglob("*.*"):
            file.write(path, path.relative_to(written).as_posix())
    return folder


@pytest.fixture(scope="module")
def outputs(good):
    """What the bundle computes from `IMAGE`."""
    return bundle.Bundle(good / "toy").function("predict")({"image": IMAGE})


def use(path):
    """Returns what a bundle computes from `IMAGE`, after all checks."""
    found = bundle.Bundle(path)
    found.check_files()
    inputs, outputs = found.samples("predict")
    call = found.function("predict")
    for name, x in call(inputs).items():
        np.testing.assert_allclose(x, outputs[name], atol=1e-5)
    return call({"image": IMAGE})


def refused(path, words):
    with pytest.raises(BundleError, match=words) as error:
        use(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def folder(good, tmp_path):
    shutil.copytree(good / "toy", tmp_path / "toy")
    return tmp_path / "toy"


def change(folder, **members):
    """Changes members of the manifest of a bundle."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_bytes(to_text({**manifest, **members}))
    return manifest


@pytest.mark.parametrize("version", [FORMAT + 1, 99])
def test_bundle_of_a_newer_version_is_refused(folder, version):
    change(folder, format=version, entries="of another kind")
    refused(folder, rf"the bundle has format {version}, and this version of Convoy reads formats up to {FORMAT}\.")


@pytest.mark.parametrize("version", ["2", None, 1.5, True, 10**30])
def test_version_that_is_no_number_is_damage(folder, version):
    change(folder, format=version)
    refused(folder, r"bundle\.json is damaged \(format: found .*, expected a whole number")


def test_program_for_another_platform_is_refused(folder):
    manifest = change(folder)
    manifest["entries"]["predict"]["programs"]["stablehlo"]["platforms"] = ["cuda", "tpu"]
    change(folder, **manifest)
    refused(folder, r"predict runs on cuda, tpu, but JAX uses cpu here\. Export the run with --platforms=cpu")


def test_program_that_this_jax_cannot_read_is_refused(folder):
    newer = b"of a later JAX"
    (folder / FILES[0]).write_bytes(newer)
    manifest = change(folder)
    change(folder, files={**manifest["files"], FILES[0]: file_record(newer)}, versions={"jax": "9.9.9"})
    refused(folder, rf"this JAX, {jax.__version__}, cannot read the program, which JAX 9\.9\.9 has written \(")


def test_folder_without_a_manifest_is_no_bundle(folder, tmp_path):
    (folder / MANIFEST).unlink()
    for path in (folder, tmp_path / "no-such", __file__):
        with pytest.raises(BundleError, match=r"is no bundle: no bundle.json can be read there"):
            bundle.Bundle(path)


def junk():
    """Values that do not belong there, in JSON."""
    return st.sampled_from([None, True, -1, 0, 1.5, 10**30, "", "x", "../x", "/etc/passwd", [], [1], {}, {"x": 1}])


def nodes(value, path=()):
    """Yields the paths of all values in JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from nodes(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@properties.examples(40)
@given(data=st.data())
def test_changed_manifest_ends_with_a_sentence_or_has_no_effect(good, outputs, data):
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(good / "toy", Path(parent) / "toy")
        manifest = json.loads((folder / MANIFEST).read_text())
        path = data.draw(st.sampled_from(list(nodes(manifest))))
        (folder / MANIFEST).write_text(json.dumps(replaced(manifest, path, data.draw(junk()))))
        ends_well(folder, outputs)


@properties.examples(40)
@given(data=st.data())
@pytest.mark.parametrize("name", ["toy", "toy.zip"])
def test_changed_bytes_end_with_a_sentence_or_have_no_effect(good, outputs, name, data):
    with tempfile.TemporaryDirectory() as parent:
        path = file = Path(parent) / name
        if name == "toy":
            shutil.copytree(good / name, path)
            file = path / data.draw(st.sampled_from([*FILES, MANIFEST]))
        else:
            shutil.copy(good / name, path)
        content = file.read_bytes()
        begin = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(begin, min(len(content), begin + 64)))
        file.write_bytes(content[:begin] + data.draw(st.binary(max_size=8)) + content[end:])
        ends_well(path, outputs)


def ends_well(path, outputs):
    """Asserts that a bundle gives the right outputs, or an error of one sentence that names it; check.py, too."""
    try:
        found = use(path)
    except ConvoyError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert found.keys() == outputs.keys()
        for name, x in outputs.items():
            np.testing.assert_allclose(found[name], x, atol=1e-6)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(None):
        code = check.main([str(path)])
    assert (code, len(errors.getvalue().splitlines())) in ((0, 0), (1, 1))


TAKES = r"but the program takes float32\[batch, 6\]"
WRONG = {
    "shape": ({"image": IMAGE[:, :2]}, rf"image is float32\[4, 2\], {TAKES}"),
    "rank": ({"image": IMAGE[0]}, rf"image is float32\[6\], {TAKES}"),
    "scalar": ({"image": np.float32(1)}, rf"image is float32\[\], {TAKES}"),
    "dtype": ({"image": IMAGE.astype(np.float64)}, rf"image is float64\[4, 6\], {TAKES}"),
    "integers": ({"image": np.ones((4, 6), np.int32)}, rf"image is int32\[4, 6\], {TAKES}"),
    "text": ({"image": np.full((4, 6), "a")}, rf"image is <U1\[4, 6\], {TAKES}"),
    "objects": ({"image": np.full((4, 6), None)}, rf"image is object\[4, 6\], {TAKES}"),
    "ragged": ({"image": [[1.0], [1.0, 2.0]]}, rf"image is no array \(.*\), {TAKES}"),
    "missing": ({}, r"image is missing. Inputs: image float32\[batch, 6\]"),
    "more": ({"image": IMAGE, "z": IMAGE}, r"z is no input. Inputs: image float32\[batch, 6\]"),
    "none": ({"image": None}, rf"image is object\[\], {TAKES}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_named(good, case):
    inputs, words = WRONG[case]
    with pytest.raises(BundleError, match=words) as error:
        bundle.Bundle(good / "toy").function("predict")(inputs)
    assert str(error.value).startswith(f"{good / 'toy'}: predict: ") and "\n" not in str(error.value)


def test_what_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    (tmp_path / "file").write_text("a")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("photos/a.jpg", "a")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("notes", "file", "other.zip", "file/toy"):
        with pytest.raises(ConfigError, match=rf"--out=.*{name}: "):
            bundle.write(tmp_path / name, {"format": FORMAT, "entries": {}}, {})
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
