"""The program of a run on other devices than those of its training."""

import json
import sys

import jax
import numpy as np
import pytest

import engine
from engine.api.saved_program import open_program
from engine.api.saved_run import SavedRun
from engine.base.errors import ConfigError, ShardingError
from tests import runs, zoo

DATA = dict(target="tests.predicting.Unreadable")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a mesh of eight devices."""
    path = tmp_path_factory.mktemp("program") / "run"
    settings = dict(train__total="2 steps", mesh__data=4, mesh__fsdp=2, task__target="tests.predicting.Predict")
    engine.train(runs.config(**settings, evaluations__heldout=dict(data=DATA)), workdir=path)
    return SavedRun(path)


def opened(run, devices, overrides=(), batch_sizes=(16,)):
    """Returns the axes of the mesh, and what the user reads."""
    said = []
    config = run.changed_config(overrides)
    spec, program = open_program(
        zoo.Classify(), config, overrides, batch_sizes, said.append, devices=jax.devices()[:devices]
    )
    assert all(getattr(spec, axis) in (None, size) for axis, size in program.mesh.shape.items())
    return {axis: size for axis, size in program.mesh.shape.items() if size > 1}, "".join(said)


def test_mesh_of_the_run_is_used_where_it_fits(run):
    assert opened(run, 8) == ({"data": 4, "fsdp": 2}, "")


def test_another_mesh_is_used_on_other_devices_and_a_sentence_says_so(run):
    axes, said = opened(run, 4)
    assert axes == {"data": 2, "fsdp": 2}
    assert said == (
        "warning: the mesh of the run (data=4 x fsdp=2) does not fit here, so data=2 x fsdp=2 is used, on 4 of 4 "
        "devices. --config.mesh.NAME=N chooses another."
    )
    assert opened(run, 1)[0] == {}
    assert opened(run, 8, batch_sizes=(16, 6))[0] == {"fsdp": 2}
    assert "on 4 of 7 devices" in opened(run, 7)[1]


def test_chosen_mesh_is_not_replaced(run):
    assert opened(run, 2, ["mesh.data=2", "mesh.fsdp=1"]) == ({"data": 2}, "")
    with pytest.raises(ShardingError, match="mesh: data=4 needs 4 devices, found 2"):
        opened(run, 2, ["mesh.fsdp=1"])
    with pytest.raises(ShardingError, match="mesh: data=4 x fsdp=2 needs 8 devices"):
        opened(run, 2, ["sharding.zero1=True"])


def test_number_of_devices_that_was_chosen_is_not_ignored(run, monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="cpu_devices = 2: JAX has already started its devices"):
        opened(run, 8, ["mesh.cpu_devices=2"])


USES = """
import json, sys, engine
run, out = sys.argv[1:]
found = engine.predict(run, batch_size=8)
names = engine.export(run, out)
model = engine.load(run).model
print(json.dumps([engine.evaluate(run), found["scores/logits"].tolist(), names, str(type(model))]))
"""


def test_run_of_eight_devices_is_used_on_one(run, tmp_path):
    words = [sys.executable, "-c", USES, run.directory.path, tmp_path / "model.safetensors"]
    done = runs.run(words)
    assert done.returncode == 0, done.stderr
    results, logits, names, kind = json.loads(done.stdout)
    assert results == pytest.approx(engine.evaluate(run.directory.path), rel=1e-5)
    np.testing.assert_allclose(logits, engine.predict(run.directory.path)["scores/logits"], atol=1e-5)
    assert names and "Mlp" in kind
    sentence = "the mesh of the run (data=4 x fsdp=2) does not fit here, so data=1 is used, on 1 of 1 device."
    assert done.stderr.count(sentence) == 3
