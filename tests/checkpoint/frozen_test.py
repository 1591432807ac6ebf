"""Parameters that never change are saved once, next to the steps of the run, which then hold only the others."""

import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from engine.base.duration import Duration
from engine.base.errors import CheckpointError
from engine.checkpoint import frozen, timeouts
from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.frozen import FrozenError
from engine.checkpoint.integrity import DamagedCheckpoints, verify_all
from engine.checkpoint.manifest import MANIFEST, read_manifest
from engine.checkpoint.policy import Retention, SavePolicy
from engine.checkpoint.store import CheckpointStore, StorageError
from engine.checkpoint.warm_start import read_weights
from engine.cluster.exit_status import ExitStatus
from engine.config.schema import Init
from engine.run.lease import ALWAYS_GRANTED
from tests import zoo
from tests.checkpoint.saves import Saves

BASE = {
    "base/codes": jnp.ones((256, 256), jnp.int8),
    "base/kernel": jnp.arange(65536.0).reshape(256, 256) / 3,
    "base/scale": jnp.linspace(0, 1, 64, dtype=jnp.bfloat16),
}


def state_of(step, base=None):
    """The state of a step; only the adapter and its optimizer state change."""
    adapter = {"base/kernel_lora": jnp.full((64, 2), step, jnp.float32)}
    return {
        "step": jnp.int32(step),
        "params": {**(base or BASE), **adapter},
        "carried": {"mean": jnp.full(4, step, jnp.float32)},
        "opt_state": [{"mu": adapter}],
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def run_to(path, last, constant=tuple(BASE)):
    """A run that saves steps 3, 6, ... up to `last`; returns the bytes of each."""
    store = Saves(path)
    store.checkpoints.prepare(2, state_of(2), constant)
    for step in range(3, last + 1, 3):
        store.save(step, state_of(step))
    store.close()
    return [read_manifest(path / str(step)).bytes for step in store.steps()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    run_to(path, 6)
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the run."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_frozen_parameters_are_on_disk_once(saved, tmp_path):
    run_to(tmp_path, 3, constant=())
    whole, base = size(tmp_path / "3"), sum(x.nbytes for x in BASE.values())
    assert sorted(path.name for path in saved.iterdir()) == ["3", "6", "frozen-2"]
    assert base < size(saved / "frozen-2") < 2 * base
    assert max(size(saved / "3"), size(saved / "6")) < base < whole
    assert not (tmp_path / "3/frozen").exists()
    formats = [json.loads((path / MANIFEST).read_text())["format"] for path in (saved / "3", tmp_path / "3")]
    assert formats == [2, 1]


@pytest.mark.parametrize("step", [3, 6])
def test_state_is_restored_bitwise(saved, step):
    store = CheckpointStore(saved)
    zoo.assert_equal(store.restore(step, abstract(state_of(step))), state_of(step))
    assert store.frozen is not None and store.frozen.paths == tuple(BASE)


def test_state_is_restored_on_a_mesh(saved):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data", "fsdp"), ()))
    wanted = jax.tree.map(lambda x: x.update(sharding=split if x.shape == (256, 256) else whole), abstract(state_of(6)))
    found = CheckpointStore(saved).restore(6, wanted)
    zoo.assert_equal(found, state_of(6))
    assert found["params"]["base/codes"].sharding == split


def test_a_resumed_run_refers_to_the_same_folder(run):
    store = Saves(run)
    assert store.restore_latest(abstract(state_of(6)))[1] == 6
    store.keep_frozen(list(BASE))
    store.save(7, state_of(7))
    store.checkpoints.prepare(8, state_of(8), tuple(BASE))
    store.save(9, state_of(9))
    store.close()
    assert [path.name for path in frozen.folders(run)] == ["frozen-2"]
    assert max(size(run / "7"), size(run / "9")) < 200_000
    zoo.assert_equal(CheckpointStore(run).restore(9, abstract(state_of(9))), state_of(9))


def test_other_frozen_parameters_get_another_folder(run):
    store = Saves(run)
    store.restore_latest(abstract(state_of(6)))
    fewer = ["base/codes", "base/scale"]
    store.keep_frozen(fewer)
    store.save(7, state_of(7))  # nothing is saved yet to which it could refer
    store.checkpoints.prepare(8, state_of(8), fewer)
    store.save(9, {**state_of(9), "params": {**state_of(9)["params"], "base/kernel": BASE["base/kernel"] + 1}})
    store.close()
    assert [path.name for path in frozen.folders(run)] == ["frozen-2", "frozen-8"]
    assert frozen.find(run / "7") is None
    found = CheckpointStore(run).restore(9, abstract(state_of(9)))
    np.testing.assert_array_equal(found["params"]["base/kernel"], BASE["base/kernel"] + 1)
    zoo.assert_equal(CheckpointStore(run).restore(6, abstract(state_of(6))), state_of(6))


def test_few_frozen_parameters_stay_in_each_step(tmp_path):
    run_to(tmp_path, 3, constant=["base/scale"])
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def remove(folder):
    shutil.rmtree(folder)


def replace(folder):
    """Another run has saved other frozen parameters there."""
    store = Saves(folder.parent)
    store.checkpoints.prepare(2, state_of(2, {path: x + 1 for path, x in BASE.items()}), tuple(BASE))
    store.close()


def damage(folder):
    file = max((folder / "state").rglob("*"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (remove, r"6: 3 parameters .*/frozen-2, which is missing .*Copy that folder next to the step"),
        (replace, r"6: 3 parameters .*/frozen-2, which has changed since the step was saved"),
        (damage, r"frozen-2: is damaged: state/.*: found \d+ bytes, expected \d+.* Copy its files from a backup"),
    ],
)
def test_other_frozen_parameters_are_refused_and_no_step_is_set_aside(run, change, text):
    change(run / "frozen-2")
    store = Saves(run)
    with pytest.raises(FrozenError, match=text) as error:
        store.restore_latest(abstract(state_of(6)))
    assert error.value.exit_code == ExitStatus.STOP and store.steps() == [3, 6]
    wanted = abstract(state_of(6))
    with pytest.raises(FrozenError, match=text):
        read_weights(Init(checkpoint=str(run / "6")), wanted, {})
    lines = []
    with pytest.raises(DamagedCheckpoints, match=r"\d of \d checkpoints are damaged"):
        verify_all(run, lines.append)
    assert "DAMAGED" in "".join(lines)


def test_list_of_steps_reports_a_missing_folder(run):
    assert [info.error for info in CheckpointStore(run).describe()] == [None, None]
    shutil.rmtree(run / "frozen-2")
    assert [info.bytes for info in CheckpointStore(run).describe()] == [0, 0]


def test_a_folder_elsewhere_is_refused(run):
    file = run / "6/frozen/frozen.json"
    file.write_text(file.read_text().replace("frozen-2", "../frozen-2"))
    with pytest.raises(FrozenError, match=r"found the folder '\.\./frozen-2', expected frozen-STEP"):
        frozen.find(run / "6")


def test_new_run_starts_from_the_frozen_and_the_trained_parameters(saved):
    wanted = abstract(state_of(6))
    found = read_weights(Init(checkpoint=str(saved / "6")), wanted, {})
    zoo.assert_equal(dict(found.params), state_of(6)["params"])
    part = {"params": {"encoder/kernel": wanted["params"]["base/kernel"]}, "carried": {}}
    found = read_weights(Init(checkpoint=str(saved / "6"), paths={"encoder": "base"}), part, {})
    zoo.assert_equal(dict(found.params), {"encoder/kernel": BASE["base/kernel"]})


def test_parameters_that_change_after_all_are_not_saved_as_frozen(tmp_path):
    store = Saves(tmp_path)
    store.checkpoints.prepare(2, state_of(2), tuple(BASE))
    changed = {**BASE, "base/kernel": BASE["base/kernel"].at[3, 5].add(1)}
    store.save(3, state_of(3, changed))
    with pytest.raises(StorageError, match=r"1 frozen parameters, such as params/base/kernel, differ from those that"):
        store.wait()
    assert store.steps() == []


def test_steps_have_all_parameters_if_the_frozen_ones_cannot_be_saved(tmp_path):
    messages = []
    store = Saves(tmp_path)
    store.checkpoints._say = messages.append
    (tmp_path / "frozen-2.1.saving").write_text("a file where the folder would be")
    store.checkpoints.prepare(2, state_of(2), tuple(BASE))
    store.save(3, state_of(3))
    store.close()
    assert len(messages) == 1 and "the frozen parameters could not be saved (" in messages[0]
    assert frozen.find(tmp_path / "3") is None
    zoo.assert_equal(CheckpointStore(tmp_path).restore(3, abstract(state_of(3))), state_of(3))


def test_due_step_waits_for_the_frozen_parameters(tmp_path, monkeypatch):
    """They hang at first, because one of their files is a pipe that no process reads."""
    monkeypatch.setattr(timeouts, "RECENT_S", 0.1)  # tests/zoo.py makes it longer
    store, policy = CheckpointStore(tmp_path, ALWAYS_GRANTED), SavePolicy(Duration(1, "steps"), 8, 8, 9)
    subject = Checkpointer(store, policy, Retention(tmp_path, 9), "name: zoo")
    pipe = tmp_path / "frozen-2.1.saving/commit_success.txt"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    readers = []
    timer = threading.Timer(1.0, lambda: readers.append(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)))
    with subject:
        subject.prepare(2, state_of(2), tuple(BASE))
        timer.start()
        assert subject.maybe_save(3, state_of(3), {}) and subject.skipped == 0
        subject.finish()
    timer.join()
    os.close(readers[0])
    assert store.steps() == [3]


def test_what_a_killed_save_has_left_is_removed_and_does_not_count(run):
    (run / "frozen-5.1.saving/state").mkdir(parents=True)
    (run / "frozen-5").mkdir()  # without a manifest
    store = CheckpointStore(run, ALWAYS_GRANTED)
    store.failed_deletions(60)
    assert not (run / "frozen-5.1.saving").exists()
    assert [path.name for path in frozen.folders(run)] == ["frozen-2"]


def test_a_run_that_starts_over_saves_its_frozen_parameters_again(run):
    store = Saves(run)
    store.restore_latest(abstract(state_of(6)))
    for step in ("3", "6"):
        shutil.rmtree(run / step)
    assert store.restore_latest(abstract(state_of(6))) is None
    other = {path: x + 1 for path, x in BASE.items()}
    store.checkpoints.prepare(2, state_of(2, other), tuple(BASE))
    store.save(3, state_of(3, other))
    store.close()
    zoo.assert_equal(CheckpointStore(run).restore(3, abstract(state_of(3))), state_of(3, other))


def test_last_save_is_lost_with_its_frozen_parameters(tmp_path):
    store = Saves(tmp_path)
    store.checkpoints.prepare(2, state_of(2), tuple(BASE))
    store.save(3, state_of(3))
    store.wait()
    store.checkpoints.finish()
    damage(tmp_path / "frozen-2")
    with pytest.raises(CheckpointError, match=r"was removed or changed while the run trained: state/.*expected"):
        store.checkpoints.finish()
    store.close()
