"""Runs with adapters: their checkpoints hold what is trained, and every reader finds the frozen model next to them."""

import math
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine import adapters
from engine.api import prepared
from engine.api.saved_run import SavedRun
from engine.checkpoint import arrays
from engine.checkpoint.frozen import FrozenError
from engine.checkpoint.tree_compat import leaves_of
from engine.checkpoint.warm_start import read_weights
from engine.cli.main import main
from engine.config.schema import Init
from tests import runs, zoo

PLAIN = dict(target="tests.zoo.Classify", width=256)
LORA = dict(target="engine.adapters.adapted", task=PLAIN, match="^hidden/.*kernel", rank=2)
SAVES = dict(train__total="6 steps", checkpoint__every="2 steps", checkpoint__keep_latest=9)
FROZEN = 4 * (16 * 256 + 256 + 256 * 256 + 256 + 256 * 4 + 4)  # bytes of the model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    engine.train(runs.config(task=PLAIN, train__total="2 steps"), workdir=path)
    return path


@pytest.fixture(scope="module")
def config(base):
    return runs.config(task=LORA, init__checkpoint=str(base), train__ema_decay=0.5, **SAVES)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    engine.train(config, workdir=path)
    return path


@pytest.fixture(scope="module")
def program(config):
    return prepared.prepare(config).build_program()[0]


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def state_of(path, program, step=6):
    return SavedRun(path).restore(step, program)


@pytest.fixture
def stopped(whole, tmp_path):
    """A copy of the run that was killed while it saved step 6, after step 4."""
    path = shutil.copytree(whole, tmp_path / "run")
    (path / "checkpoints/6").rename(path / "checkpoints/6.3.saving")
    (path / "checkpoints/6.3.saving/manifest.json").unlink()
    return path


def test_checkpoints_hold_only_what_is_trained(whole, base, program, capsys):
    matrices = program.spec.model.trained
    folders = {path.name: size(path) for path in (whole / "checkpoints").iterdir() if path.is_dir()}
    assert folders.keys() >= {"4", "6", "frozen-2"}
    assert FROZEN < folders["frozen-2"] < 2 * FROZEN
    stored = leaves_of(arrays.describe(whole / "checkpoints/6/state"))
    assert {path for path in stored if path.startswith("params/")} == {f"params/{path}" for path in matrices}
    assert sum(4 * math.prod(leaf.shape) for leaf in stored.values()) < FROZEN / 10
    assert max(folders["4"], folders["6"]) < size(base / "checkpoints/2")  # files of TensorStore have much overhead
    assert main(["checkpoints", str(whole)]) == 0
    assert "MiB  parameters that no step changes" in capsys.readouterr().out


def test_explain_says_what_a_checkpoint_holds(config):
    assert "\neach checkpoint: 24.8 KiB; frozen parameters, saved once for the run: 278.0 KiB\n" in engine.explain(
        config
    )


def test_killed_run_is_resumed_bitwise(config, whole, stopped, program):
    assert engine.train(config, workdir=stopped).step == 6
    assert "resuming from step 4" in (stopped / "log.txt").read_text()
    zoo.assert_equal(state_of(stopped, program), state_of(whole, program))
    assert (stopped / "checkpoints/6/frozen/frozen.json").is_file()


def test_state_is_restored_on_another_mesh(config, whole, program):
    mesh = dict(mesh__data=2, mesh__fsdp=4)
    other = runs.config(task=LORA, init__checkpoint=config.init.checkpoint, train__ema_decay=0.5, **SAVES, **mesh)
    zoo.assert_equal(state_of(whole, prepared.prepare(other).build_program()[0]), state_of(whole, program))


def test_readers_find_the_frozen_model(whole, base, tmp_path, capsys):
    assert engine.evaluate(whole, step=4)["heldout/loss"] == pytest.approx(runs.rows(whole, "heldout/loss")[4])
    out = tmp_path / "merged.safetensors"
    assert main(["export", str(whole), "--format=hf", f"--out={out}", "--no-card"]) == 0
    model: Any = engine.load(whole).model
    before: Any = engine.load(base).model
    kernel = np.asarray(adapters.merged(model).hidden[0].kernel)
    np.testing.assert_array_equal(load_file(out)["hidden.0.weight"], kernel.T)
    assert np.abs(kernel - np.asarray(before.hidden[0].kernel)).max() > 0
    np.testing.assert_array_equal(np.asarray(model.hidden[1].bias), np.asarray(before.hidden[1].bias))
    assert main(["compare", str(base), str(whole)]) == 0
    assert "heldout/accuracy" in capsys.readouterr().out


def test_another_run_starts_from_its_averages_and_frozen_model(whole, program):
    model, state = program.spec.model, state_of(whole, program)
    found = read_weights(
        Init(checkpoint=str(whole)), program.abstract_state.to_tree(), model.stacked, model.without_values()
    )
    assert state.ema is not None
    zoo.assert_equal(dict(found.params), {**state.params, **state.ema})


def test_run_without_its_frozen_model_is_refused(config, stopped):
    shutil.rmtree(stopped / "checkpoints/frozen-2")
    with pytest.raises(FrozenError, match=r"4: 6 parameters .*frozen-2, which is missing"):
        engine.train(config, workdir=stopped)
    with pytest.raises(FrozenError, match="which is missing"):
        engine.evaluate(stopped, step=4)
    assert (stopped / "checkpoints/4/manifest.json").is_file()
