"""The manifest of a bundle."""

import pytest

from engine.bundles import manifest
from engine.bundles.manifest import Array, BundleError, EntryPoint

ENTRY = EntryPoint(
    "step", {"x": Array(("batch", 8), "float32")}, {"y": Array((), "int32")}, {"onnx": {"file": "f"}}, "s", 0.1, ("x",)
)


def test_entry_point_is_read_as_it_was_written():
    assert manifest.entry_of("step", manifest.entry_json(ENTRY)) == ENTRY
    assert str(ENTRY.inputs["x"]) == "float32[batch, 8]" and str(ENTRY.outputs["y"]) == "int32[]"


def test_same_content_gives_the_same_bytes():
    text = manifest.to_text({"b": 1, "a": "é"})
    assert text == manifest.to_text({"a": "é", "b": 1}) == '{\n "a": "é",\n "b": 1\n}\n'.encode()


def test_later_format_is_refused():
    stored = {"format": 1, "entries": {"step": manifest.entry_json(ENTRY)}, "files": {}, "name": "x"}
    assert manifest.parse(manifest.to_text(stored), "here") == stored
    with pytest.raises(BundleError, match=r"here: the bundle has format 2, .* reads formats up to 1. Install a newer"):
        manifest.parse(b'{"format": 2}', "here")
    with pytest.raises(BundleError, match=r'here: bundle.json is damaged \(format: found "1", expected a whole number'):
        manifest.parse(b'{"format": "1"}', "here")
