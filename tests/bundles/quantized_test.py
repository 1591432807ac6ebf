"""Entry points in fewer bits: what the program computes, and what the manifest says about it."""

import numpy as np
import pytest

import engine
from engine.bundles import bundle
from engine.bundles.export import export_bundle
from engine.bundles.options import Options
from engine.bundles.parity import differences
from engine.quantization.runs import Settings
from tests import zoo
from tests.bundles import subjects


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory):
    """Returns a bundle in int8, which holds its weights, and the sentences about it."""
    said = []
    options = Options(quantize=Settings("int8"), holds_weights=True, platforms=("cpu",))
    out = tmp_path_factory.mktemp("out") / "int8.zip"
    return export_bundle(subjects.reader_run(), out, options=options, on_message=said.append), said


def test_program_computes_nearly_what_the_model_does_in_int8(in_int8):
    found, said = in_int8
    loaded, x = engine.load(subjects.reader_run()), zoo.examples(9, seed=5)["x"]
    scores = found.function("predict")({"x": x})["scores/all"]
    want = np.asarray(loaded.task.predict(loaded.model, {"x": x})["scores"]["all"])
    assert 0 < np.abs(scores - want).max() < 0.02
    assert any("heldout/accuracy" in line and "95 % interval" in line for line in said)
    assert found.entry("predict").tolerance == 0.02


def test_manifest_has_the_plan_of_each_entry_point_and_the_quality_of_the_first(in_int8):
    described = in_int8[0].manifest["quantization"]
    assert sorted(described) == ["certain", "embed", "predict"]
    layers = [layer["weight"] for layer in described["predict"]["layers"]]
    assert layers == ["hidden/0/kernel", "hidden/1/kernel", "head/kernel"]
    assert described["predict"]["metrics"]["quantized"].keys() == {"heldout/loss", "heldout/accuracy"}
    assert "metrics" not in described["embed"]  # the quality is measured once


class Single(zoo.Classify):
    """A Task with one entry point."""

    def predict(self, model, batch):
        return model(batch["x"])


@pytest.mark.parametrize("scheme", ["int8", "int8-weights"])
def test_weights_are_stored_in_int8_with_scales(tmp_path, scheme):
    options = Options(quantize=Settings(scheme, keep=["head/kernel"]), platforms=("cpu",))
    found = export_bundle(subjects.reader_run(), tmp_path / "b", task=Single(), options=options)
    arrays = bundle.load_arrays(found.read("predict.weights.safetensors"))
    assert arrays["hidden/0/kernel"].dtype == np.int8 and arrays["hidden/0/kernel_scale"].shape == (1, 32)
    assert arrays["head/kernel"].dtype == np.float32
    inputs, outputs = found.samples("predict")
    np.testing.assert_allclose(found.function("predict")(inputs)["prediction"], outputs["prediction"], atol=1e-6)


def test_each_entry_point_has_its_own_scales_of_inputs(tmp_path):
    options = Options(quantize=Settings("int8"), platforms=("cpu",))
    found = export_bundle(subjects.reader_run(), tmp_path / "b", options=options)
    files = [name for name in found.manifest["files"] if name.endswith(".weights.safetensors")]
    assert files == [f"{name}.weights.safetensors" for name in ("certain", "embed", "predict")]
    scales = [bundle.load_arrays(found.read(file))["hidden/0/kernel_input_scale"] for file in files]
    assert scales[0] == scales[2] != scales[1]  # the frames of embed are others
    for name, entry in found.entries.items():
        inputs, outputs = found.samples(name)
        assert max(differences(found.function(name)(inputs), outputs).values()) <= entry.tolerance
