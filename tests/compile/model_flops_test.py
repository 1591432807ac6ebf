"""Model FLOPs: the same for every way to compute a step. `tests/models` compares them with closed formulas."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Mean, Task
from engine.config.schema import MeshSpec
from engine.layers import Experts, Stack, attention, cross_entropy
from tests import zoo

TIME, WIDTH, VOCABULARY = 8, 16, 12
EXAMPLE = {"x": jax.ShapeDtypeStruct((TIME, WIDTH), np.float32), "y": jax.ShapeDtypeStruct((TIME,), np.int32)}


class Layer(nnx.Module):
    """Causal attention and experts."""

    def __init__(self, rngs):
        self.project = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.experts = Experts(WIDTH, 8, 4, 2, capacity_factor=1.25, rngs=rngs)

    def __call__(self, x, rng):
        q, k = (y.reshape(*x.shape[:2], 2, -1) for y in (x, self.project(x)[..., :WIDTH]))
        return self.experts(x + attention(q, k, k, causal=True).reshape(x.shape))[0]


class Model(nnx.Module):
    """A stack of layers and a kernel of logits."""

    def __init__(self, rngs):
        self.stack = Stack(Layer, 2, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.stack(x)


class Layers(Task):
    """Cross-entropy in four chunks, which recomputes the logits."""

    def build(self, rngs):
        return Model(rngs)

    def loss(self, model, batch, rng):
        return Loss.of(cross_entropy(model(batch["x"]), model.head.kernel.get_value(), batch["y"], chunks=4))


@functools.cache
def default_flops() -> tuple[float, float]:
    """Returns the FLOPs of the model and those of the hardware."""
    program = zoo.program(Layers(), batch_size=16, example=EXAMPLE)
    program.trace(1)
    return program.flops_per_step, program.hardware_flops_per_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"layout": {"remat": "full"}},
        {"layout": {"remat": "dots"}, "precision": "bfloat16"},
        {"accumulate": 4},
        {"mesh": MeshSpec(expert=4, data=2), "layout": {"remat": "full"}},
        {"mesh": MeshSpec(pipeline=2, fsdp=4)},
        {"target": "optax.contrib.muon"},
    ],
    ids=str,
)
def test_model_flops_are_those_of_the_default_step(options):
    program = zoo.program(Layers(), batch_size=16, example=EXAMPLE, **options)
    program.trace(1)
    wanted, of_hardware = default_flops()
    assert program.flops_per_step == wanted
    assert program.hardware_flops_per_step >= of_hardware > wanted


class OwnStep(zoo.Classify):
    """The step of a Classify as an `update`."""

    def update(self, state, batch, context):
        def loss(params):
            result: Any = zoo.Classify.loss(self, state.model(params), batch, context.rng)
            return result.total.sum() / result.weight.sum(), result

        grads, result = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads), {"loss": Mean(result.total, result.weight)}


@pytest.mark.parametrize("target", ["optax.adamw", "optax.contrib.muon"])
def test_flops_of_an_update_leave_out_the_optimizer(target):
    assert (
        zoo.program(OwnStep(), target=target).flops_per_step
        == zoo.program(zoo.Classify(), target=target).flops_per_step
    )


class Checkpointed(zoo.Classify):
    """A Classify whose loss recomputes everything for the gradient."""

    def loss(self, model, batch, rng):
        return jax.checkpoint(lambda batch: zoo.Classify.loss(self, model, batch, rng))(batch)


def test_recomputation_of_the_author_does_not_count():
    program, wanted = (zoo.program(task, batch_size=16) for task in (Checkpointed(), zoo.Classify()))
    assert program.flops_per_step == wanted.flops_per_step
    program.trace(1)
    assert program.hardware_flops_per_step > program.flops_per_step
