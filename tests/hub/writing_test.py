"""Modules written with the names of another program: bit for bit what was read, or one sentence."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from engine import hub
from engine.base.errors import CheckpointError
from tests.hub.subjects import Net, made, there, write


def bits(arrays):
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}


def test_joined_arrays_are_split_as_in_the_original(tmp_path):
    net, original = made(Net), write(tmp_path, there("model."))
    hub.load(net, original)
    hub.save(net, tmp_path / "out.safetensors", like=original)
    assert bits(load_file(tmp_path / "out.safetensors")) == bits(load_file(original))
    with pytest.raises(CheckpointError, match=r"gate_up/kernel: joins h.0.gate.weight, h.0.up.weight, and the size of"):
        hub.save(net, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


def test_part_of_an_array_and_other_shapes_are_refused(tmp_path):
    net, original = made(Net), write(tmp_path, {**there(), "head.weight": np.zeros((7, 4), np.float32)})
    with pytest.raises(CheckpointError, match=r"model.safetensors has no arrays head.weight \[3, 4\]. Save the part"):
        hub.save(net, tmp_path / "out.safetensors", like=original)
    net.stack.layers.value = None
    with pytest.raises(CheckpointError, match=r"save: h.0.qv.weight: part 1 of 2 is in no array of the module"):
        hub.save(net, tmp_path / "out.safetensors", like=original)


def test_dtypes_are_those_of_the_module(tmp_path):
    layer = nnx.Linear(2, 3, param_dtype=ml_dtypes.bfloat16, rngs=nnx.Rngs(0))
    assert hub.save(layer, tmp_path / "out.safetensors") == ["bias", "weight"]
    found = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(found["weight"], np.asarray(layer.kernel[...]).T)
    assert found["bias"].dtype == ml_dtypes.bfloat16


class Scaled(nnx.Module):
    """A module with a scalar, such as the temperature of CLIP."""

    def __init__(self):
        self.logit_scale = nnx.Param(jnp.float32(2.5))


def test_scalar_stays_a_scalar(tmp_path):
    assert hub.save(Scaled(), tmp_path / "out.safetensors") == ["logit_scale"]
    assert load_file(tmp_path / "out.safetensors")["logit_scale"].shape == ()
