"""A small model with every kind of layer that adapters know, and its programs, compiled once for all tests."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from engine import Loss, Task, layers
from engine.adapters import adapted
from engine.config.schema import MeshSpec
from tests import zoo

WIDTH, RANK = 16, 4
BATCHES = zoo.batches(3)
MESHES: dict[str, dict[str, Any]] = {
    "one device": {},
    "many": dict(mesh=MeshSpec(pipeline=2, data=2, tensor=2), layout=dict(zero1=True), accumulate=2),
}


class Block(nnx.Module):
    """A layer of the stack: two dense layers of one input, and one of Flax."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = layers.Dense(WIDTH, WIDTH, axes=("embed", "heads"), bias=True, rngs=rngs)
        self.value = layers.Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, rng):
        query, value = layers.project(x, self.query, self.value)
        return x + self.out(nnx.tanh(query) * value)


class Net(nnx.Module):
    """A convolution, a stack of two layers, and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(4, WIDTH, (3,), rngs=rngs)
        self.stack = layers.Stack(Block, 2, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.stack(self.conv(x.reshape(-1, 4, 4))).mean(1))


@dataclasses.dataclass
class Small(Task):
    """Classifies the examples of tests/zoo.py."""

    def build(self, rngs):
        return Net(rngs)

    def loss(self, model, batch, rng):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        return Loss.of(losses, batch["valid"])

    def predict(self, model, batch):
        return {"logits": model(batch["x"])}


def task(**settings: Any) -> Task:
    """Returns the Task with adapters of all kernels, one of them with DoRA, unless the settings say otherwise."""
    several = {
        "lora": dict(match="(conv|query|out|head)/kernel$", rank=RANK),
        "dora": dict(match="value/kernel$", rank=RANK, dora=True),
    }
    return adapted(Small(), **(settings if "match" in settings else {"adapters": several, **settings}))


@functools.cache
def program(name: str = "one device"):
    """Returns the program of the Task on a mesh."""
    return zoo.program(task(), **MESHES[name], target="optax.sgd", learning_rate=0.1, ema_decay=0.9)


@functools.cache
def trained(name: str = "one device"):
    """Returns the state after three steps, and the losses."""
    state, metrics = zoo.run(program(name), BATCHES)
    return state, zoo.losses(metrics)


def module(state: Any = None) -> nnx.Module:
    """Returns the model of one device with the values of a state, by default the trained one."""
    state = trained()[0] if state is None else state
    return program().spec.model.module(state.params, state.model_state, None)


def adapter_paths(params: Any) -> list[str]:
    """Returns the paths of the matrices."""
    return [path for path in params if "_lora_" in path or "_dora_" in path]


def outputs(model: nnx.Module) -> np.ndarray:
    """Returns the logits of a model for a batch."""
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, BATCHES[0]["x"]))
