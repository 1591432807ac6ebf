"""Bundles of trained runs: their entry points compute what the engine does, and the same run gives the same bytes."""

import json
import re
import sys
from typing import Any

import jax
import numpy as np
import pytest

import engine
from engine.base.errors import ConfigError, RunError, TaskError
from engine.bundles import bundle, parity, program
from engine.bundles.export import export_bundle
from engine.bundles.manifest import BundleError
from engine.bundles.options import Options
from engine.lineage.things import thing_at
from tests import zoo
from tests.bundles import subjects


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns the bundle of a run with three entry points, and the sentences about it."""
    said = []
    found = export_bundle(subjects.reader_run(), tmp_path_factory.mktemp("out") / "reader", on_message=said.append)
    return found, said


def test_every_entry_point_computes_what_the_engine_does_at_any_size(written):
    found, said = written
    assert sorted(found.entries) == ["certain", "embed", "predict"]
    assert [line.partition(":")[0] for line in said] == ["Reader.predict", "Reader.certain", "Reader.embed"]
    loaded: Any = engine.load(subjects.reader_run())
    x = zoo.examples(9, seed=5)["x"]
    outputs = found.function("predict")({"x": x})
    np.testing.assert_allclose(outputs["scores/all"], jax.nn.softmax(loaded.model(x)), atol=1e-6)
    np.testing.assert_array_equal(outputs["class"], loaded.model(x).argmax(-1))
    frames = zoo.examples(8)["x"].reshape(4, 2, -1)
    expected = loaded.task.embed(loaded.model, {"frames": frames})
    np.testing.assert_allclose(found.function("embed")({"frames": frames})["prediction"], expected, atol=1e-6)
    assert str(found.entry("embed").inputs["frames"]) == "float32[n, t, 16]"
    assert sorted(found.entry("certain").inputs) == ["valid", "x"] and sorted(found.entry("predict").inputs) == ["x"]


def test_same_run_gives_the_same_bytes_as_folder_and_as_zip(written, tmp_path):
    again = export_bundle(subjects.reader_run(), tmp_path / "again.zip")
    found, _ = written
    assert again.manifest == found.manifest
    assert {name: again.read(name) for name in found.manifest["files"]} == {
        name: found.read(name) for name in found.manifest["files"]
    }
    third = export_bundle(subjects.reader_run(), tmp_path / "third.zip")
    assert third.path.read_bytes() == again.path.read_bytes()
    text = b"".join(found.read(name) for name in found.manifest["files"]).decode("latin-1")
    assert not re.search(r"[\w/]+/engine/|subjects\.py", text)  # no path of this machine


def test_manifest_says_where_the_bundle_is_from(written):
    manifest = written[0].manifest
    run = manifest["run"]
    assert (run["name"], run["step"], run["task"]) == ("reader", 4, "Reader") and "train.total: 4 steps" in run[
        "config"
    ]
    assert manifest["metrics"]["heldout/loss"] > 0
    thing = thing_at(written[0].path)
    assert thing is not None
    [checkpoint] = thing.inputs("checkpoint")
    assert (checkpoint.step, checkpoint.id) == (4, run["checkpoint"])
    assert manifest["data"]["data"]["examples"] == "64" and len(manifest["data"]["data"]["content"]) > 10


def test_model_with_memory_is_a_step_function_equal_to_the_unrolled_model_over_50_frames(tmp_path):
    run = subjects.track_run()
    options = Options(overrides=["evaluations.heldout.data.length=1"])
    found = export_bundle(run, tmp_path / "track", options=options)
    entry = found.entry("predict")
    assert entry.state == ("state/memory",) and str(entry.inputs["seen"]) == "float32[batch, 1]"
    seen = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    loaded: Any = engine.load(run)
    call = found.function("predict")
    loaded.model.memory.set_value(np.zeros((3, 8), np.float32))
    whole = {"starts": np.ones(3, bool), "valid": np.ones((3, 50), bool)}
    unrolled = loaded.task.predict(loaded.model, {"seen": seen, "sequence": whole})["sum"]
    state, steps = np.full((3, 8), 7, np.float32), []
    for t in range(50):
        inputs = {
            "seen": seen[:, t : t + 1],
            "sequence/starts": np.full(3, t == 0),
            "sequence/valid": np.ones((3, 1), bool),
        }
        outputs = call({**inputs, "state/memory": state})
        state = outputs["state/memory"]
        steps.append(outputs["sum"])
    np.testing.assert_allclose(np.concatenate(steps, axis=1), unrolled, atol=1e-6)
    np.testing.assert_allclose(state, loaded.model.memory[...], atol=1e-6)
    inputs, expected = found.samples("predict")
    assert inputs["seen"].shape == (6, 1, 1) and inputs["state/memory"].shape == (1, 8)
    frames = [{name: x[i] for name, x in inputs.items() if name != "state/memory"} for i in range(6)]
    again = parity.run_frames(call, frames, {"state/memory": inputs["state/memory"]})
    assert max(parity.differences(again, expected).values()) < 1e-6


def test_weights_inside_fixed_sizes_and_bfloat16(tmp_path):
    run = subjects.reader_run("bfloat16")
    options = Options(rows=2, holds_weights=True, platforms=("cpu",), shapes={"x": "2, 16"})
    found = export_bundle(run, tmp_path / "b", options=options)
    assert "weights.safetensors" not in found.manifest["files"]
    x = zoo.examples(2)["x"]
    scores = found.function("predict")({"x": x})["scores/all"]
    assert scores.dtype == "bfloat16" and found.entry("predict").tolerance == 0.02
    with pytest.raises(BundleError, match=re.escape("x is float32[3, 16], but the program takes float32[2, 16]")):
        found.function("predict")({"x": zoo.examples(3)["x"]})


class Changed(subjects.Reader):
    """A Task whose program would differ from the engine: it counts its calls."""

    calls = 0

    def predict(self, model, batch):
        type(self).calls += 1
        return {"class": model(batch["x"]) * self.calls}


def test_nothing_is_written_if_a_program_differs_from_the_engine(tmp_path):
    with pytest.raises(
        BundleError, match=r"Changed.predict: output class of the StableHLO program differs .* Nothing was"
    ):
        export_bundle(subjects.reader_run(), tmp_path / "out", task=Changed())
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


class Sized(subjects.Reader):
    """A Task that asks for the number of rows."""

    def predict(self, model, batch):
        return {"class": model(batch["x"]) / len(batch["x"])}


def test_errors_name_the_line_and_what_to_do(tmp_path):
    run, out = subjects.reader_run(), tmp_path / "out"
    with pytest.raises(
        TaskError, match=r"Sized.predict: cannot be exported .*export_test.py:\d+ in predict.*--batch=N"
    ):
        export_bundle(run, out, task=Sized())
    with pytest.raises(ConfigError, match="--shape=y: no entry point reads such an input"):
        export_bundle(run, out, options=Options(shapes={"y": "n"}))
    with pytest.raises(ConfigError, match=r"--evaluation=held: no such evaluation. Did you mean heldout"):
        export_bundle(run, out, options=Options(evaluation="held"))
    with pytest.raises(TaskError, match=r"Classify: has no entry point to export. Define predict"):
        export_bundle(run, out, task=zoo.Classify())
    with pytest.raises(RunError, match=r"ftp://bucket/out: this address cannot be mounted"):
        export_bundle(run, "ftp://bucket/out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("text")
    with pytest.raises(ConfigError, match="the folder exists and holds no bundle"):
        export_bundle(run, tmp_path / "mine")
    assert not out.exists()


def test_task_that_a_source_adapts_is_not_converted(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOY_ONNX_PYTHON", sys.executable)
    joint = dict(target="engine.Joint", sources=dict(a=dict(target="tests.zoo.source", n=37, seed=9)))
    overrides = [f"evaluations.heldout.data={json.dumps(joint)}"]
    with pytest.raises(ConfigError, match=r"--format=onnx: evaluations.heldout.data adapts the Task, as engine.Joint"):
        export_bundle(subjects.reader_run(), tmp_path / "out", options=Options(("onnx",), overrides=overrides))


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (subjects.reader_run, Options(shapes={"x": "16, 16", "valid": "16", "frames": "9, t, 16"})),
        (subjects.track_run, Options(rows=2, overrides=["evaluations.heldout.data.length=1"])),
    ],
)
def test_samples_have_the_fixed_rows_of_a_program(run, options, tmp_path):
    found = export_bundle(run(), tmp_path / "out", options=options)
    for name, entry in found.entries.items():
        inputs, outputs = found.samples(name)
        frames = [inputs] if not entry.state else [{n: x[0] for n, x in inputs.items() if n not in entry.state}]
        state = {n: inputs[n] for n in entry.state}
        computed = parity.run_frames(found.function(name), frames, state)
        assert computed.keys() == outputs.keys()


class Misnamed(subjects.Reader):
    """A Task that says the shape of an input that its method does not read."""

    @engine.exported(shapes={"frame": "n, 16"})
    def embed(self, model, batch):
        return model(batch["x"])


def test_platforms_and_shapes_that_cannot_be_used_are_refused(tmp_path):
    run, out = subjects.reader_run(), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"--platforms=cuda,tpu: the programs are compared .* JAX uses cpu. Add cpu"):
        export_bundle(run, out, options=Options(platforms=("cuda", "tpu")))
    with pytest.raises(TaskError, match=r"Misnamed.embed: shapes= names frame, which .* Inputs: x\."):
        export_bundle(run, out, task=Misnamed())


def test_missing_package_and_wrong_key_are_found_before_the_run_is_read(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--sign=none: cannot be read"):
        export_bundle(tmp_path / "no run", tmp_path / "out", options=Options(sign="none"))
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"JAX needs the package flatbuffers to write programs. Install it: .*bundle"):
        export_bundle(tmp_path / "no run", tmp_path / "out")


def test_older_bundle_is_replaced(written, tmp_path):
    out = tmp_path / "out"
    bundle.write(out, {"format": 1, "entries": {}}, {"old": b"1"})
    export_bundle(subjects.reader_run(), out)
    assert not (out / "old").exists() and bundle.Bundle(out).entries.keys() == written[0].entries.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.lineage.json"}
