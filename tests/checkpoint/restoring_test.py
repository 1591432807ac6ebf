"""The state of a step is read from its own folder and that of its frozen parameters, in the shapes of the program."""

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint import restoring
from engine.checkpoint.integrity import verify
from tests import zoo
from tests.checkpoint.saves import Saves

STATE = {
    "step": jnp.int32(3),
    "params": {
        "layers/kernel": jnp.arange(96.0).reshape(6, 4, 4),
        "layers/kernel_lora": jnp.arange(24.0).reshape(6, 4),
    },
}


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The folder of a step whose kernel is frozen."""
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    store = Saves(path)
    store.checkpoints.prepare(2, STATE, ["layers/kernel"])
    store.save(3, STATE)
    store.close()
    return path / "3"


def read(step, wanted, partial=None):
    frozen = restoring.verified_frozen(step, verify(step), 60)
    stacked = {"layers/kernel": 2, "layers/kernel_lora": 2}
    return restoring.read_state(step, frozen, wanted, stacked, partial, lambda text: f"cannot be read: {text}")


def abstract(**shapes):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = {
        f"layers/{name}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device) for name, shape in shapes.items()
    }
    return {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=device), "params": params}


def test_layers_of_both_folders_are_folded_for_a_pipeline(step):
    found = read(step, abstract(kernel=(2, 3, 4, 4), kernel_lora=(2, 3, 4)))
    for path, x in STATE["params"].items():
        zoo.assert_equal(found["params"][path].reshape(x.shape), x)


def test_frozen_parameters_alone_are_read_for_a_part_of_the_model(step):
    found = read(step, abstract(kernel=(6, 4, 4)), ())
    zoo.assert_equal(found, {**STATE, "params": {"layers/kernel": STATE["params"]["layers/kernel"]}})


def test_step_of_another_model_names_frozen_parameters_too(step):
    with pytest.raises(CheckpointError, match=r"layers/kernel: checkpoint \(6, 4, 4\) float32, model \(6, 4, 5\)"):
        read(step, abstract(kernel=(6, 4, 5), kernel_lora=(6, 4)))
