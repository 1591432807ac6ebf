import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Task
from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from tests import zoo

SIZE, ROWS = 16, 32


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        sizes = itertools.pairwise((4, 16, 32, 32))
        self.layers = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in sizes)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x.mean((1, 2))


class Images(Task):
    def build(self, rngs):
        return Convolutions(rngs)

    def loss(self, model, batch, rng):
        return Loss.of(jnp.square(model(batch["x"]) - 1).mean(-1))


def program(mesh=None):
    example = {"x": jax.ShapeDtypeStruct((SIZE, SIZE, 4), np.float32)}
    return zoo.program(Images(), mesh=mesh, batch_size=ROWS, example=example, target="optax.sgd", clip_norm=None)


def test_devices_exchange_kernels_and_no_activations():
    split = program(MeshSpec(fsdp=8))
    found = collectives(split.trace(1).lower().compile().as_text() or "", split.mesh)
    parameters = 4 * sum(math.prod(x.shape) for x in split.abstract_state.params.values())
    assert sum(c.moved for c in found) <= 3 * parameters  # gathered once; XLA:CPU sums gradients in full


@pytest.mark.slow
def test_convolutions_split_over_fsdp_give_the_result_of_one_device():
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(ROWS, SIZE, SIZE, 4)).astype(np.float32)} for _ in range(2)]
    one, split = (zoo.run(program(mesh), batches)[0] for mesh in (None, MeshSpec(data=2, fsdp=4)))
    assert any("fsdp" in str(x.sharding.spec) for x in jax.tree.leaves(split.params))
    zoo.assert_close(one.params, split.params, 1e-6)
