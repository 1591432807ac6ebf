"""The activations of layers, against the same values computed one layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.config.schema import MeshSpec
from engine.diagnosis.activations import Activations
from engine.diagnosis.groups import Groups
from tests import zoo
from tests.diagnosis import stacked

MEASURES = {"activation_max", "activation_rms", "dead_units", "attention_entropy"}


def measured(program, examples=None):
    batch = jax.device_put(zoo.batch(examples or zoo.examples(16)), program.spec.batch_sharding)
    return Activations(program, Groups.of(program.spec.model)).measure(program.init(), batch)


def attention_entropy(layer: stacked.Layer, x: jax.Array) -> jax.Array:
    q, k, _ = jnp.split(layer.qkv(x).reshape(*x.shape[:2], stacked.HEADS, -1), 3, -1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf))
    return -jax.scipy.special.xlogy(p, p).sum(-1).mean()


@jax.jit
def one_by_one(params, x):
    """Returns measure -> layer -> value, from one layer after the other."""
    x = jnp.einsum("btd,de->bte", x.reshape(len(x), stacked.TIME, -1), params["embed/kernel"])
    outputs, found = {"embed": x}, {name: {} for name in MEASURES}
    for i, layer in enumerate(stacked.layers_of(params)):
        name = f"decoder/{i}"
        found["attention_entropy"][name] = attention_entropy(layer, x)
        hidden = layer.hidden(layer.attend(x))
        found["dead_units"][name] = (hidden == 0).all((0, 1)).mean()
        outputs[name] = x = layer(x)
    outputs["head"] = jnp.einsum("be,ec->bc", x.mean(1), params["head/kernel"])
    found["activation_max"] = {name: jnp.abs(out).max() for name, out in outputs.items()}
    found["activation_rms"] = {name: jnp.sqrt(jnp.square(out).mean()) for name, out in outputs.items()}
    return found


@pytest.fixture(scope="module")
def wanted():
    params = zoo.program(stacked.Classify()).init().params
    found = jax.tree.map(float, one_by_one(params, zoo.examples(16)["x"]))
    assert 0 < sum(found["dead_units"].values()) < stacked.LAYERS, "some units are dead"
    return found


SETTINGS = {
    "one device": dict(),
    "mesh, microbatches and remat": dict(
        mesh=MeshSpec(fsdp=2, tensor=2), devices=4, batch_size=32, accumulate=2, layout={"remat": "full"}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_activations_of_a_stack_are_those_of_its_layers_one_by_one(settings, wanted):
    program = zoo.program(stacked.Classify(), **SETTINGS[settings])
    parts = program.spec.accumulate
    # Row r goes to microbatch r mod 2, and the first microbatch is measured.
    rows = {name: np.repeat(x, parts, 0) for name, x in zoo.examples(16).items()}
    if parts > 1:
        rows["x"][1::parts] *= 3
    found = measured(program, rows)
    assert {name: sorted(values) for name, values in found.items()} == {n: sorted(v) for n, v in wanted.items()}
    for name, values in wanted.items():
        for layer, value in values.items():
            assert found[name][layer] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, layer)


def test_stages_of_a_pipeline_are_left_out():
    program = zoo.program(stacked.Classify(), mesh=MeshSpec(pipeline=2), devices=2)
    assert measured(program)["activation_max"].keys() == {"embed", "head"}


def test_attention_of_flax_and_activations_between_modules_are_found():
    found = measured(zoo.program(zoo.Classify("decoder")))
    assert found["attention_entropy"].keys() == {"attention"}
    assert 0 < found["attention_entropy"]["attention"] < np.log(zoo.SIZE)
    assert "dead_units" not in found, "gelu has no dead units"
    assert measured(zoo.program(zoo.Classify()))["dead_units"].keys() == {"hidden/0", "hidden/1"}
    cnn = measured(zoo.program(zoo.Classify("cnn")))
    assert cnn["dead_units"].keys() == {"norm"}, "of the ReLU after it, and not of the variances"
    assert cnn["dead_units"]["norm"] * 32 == round(cnn["dead_units"]["norm"] * 32)


def test_classes_of_the_modules_are_as_before():
    before = [kind.__call__ for kind in (stacked.Layer, nnx.Linear)], "__call__" in vars(stacked.Stacked)
    measured(zoo.program(zoo.Classify()))
    assert ([kind.__call__ for kind in (stacked.Layer, nnx.Linear)], "__call__" in vars(stacked.Stacked)) == before
