"""A tiny model, its cost model on one host of H100, and candidates by their axes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import ArraySource, Loss, Task, layers
from engine.api.prepared import resolve_config
from engine.config import defaults
from engine.config.hardware import AXES
from engine.config.schema import Sharding
from engine.parallel.targets import parse
from engine.planning import machine as machines
from engine.planning.candidates import Candidate
from engine.planning.cost import CostModel
from engine.planning.machine import Machine
from engine.planning.tracing import Traces
from tests import zoo

ROWS = 32
WIDTH, HIDDEN, DEPTH = 64, 256, 8
DEEP_ROWS = 1024


class Layer(nnx.Module):
    """Two products and a residual connection."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = layers.Dense(WIDTH, HIDDEN, axes=("embed", "mlp"), rngs=rngs)
        self.down = layers.Dense(HIDDEN, WIDTH, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x, rng):
        return x + self.down(jnp.tanh(layers.checkpoint(self.up(x), "hidden")))


@dataclasses.dataclass
class Deep(Task):
    """A stack of layers, enough of them that no trace unrolls it."""

    def build(self, rngs):
        return nnx.Dict(first=nnx.Linear(zoo.SIZE, WIDTH, rngs=rngs), stack=layers.Stack(Layer, DEPTH, rngs=rngs))

    def loss(self, model, batch, rng):
        return Loss.of(model["stack"](model["first"](batch["x"])).sum(-1), batch["valid"])


def machine(text: str) -> Machine:
    """Returns the machine of a target."""
    target = parse(text)
    assert target is not None
    return machines.of_target(target)


def candidate(**settings) -> Candidate:
    """Returns a candidate by its axes and settings: `candidate(data=2, remat="full")`."""
    sizes = [settings.pop(axis, 1) for axis in AXES]
    return Candidate(tuple(sizes), (1,) * len(AXES), **settings)


@functools.cache
def program():
    """Returns the program on one device."""
    return zoo.program(zoo.Classify(width=64), batch_size=ROWS, devices=jax.devices()[:1])


@functools.cache
def config():
    """Returns a config for the program."""
    found = defaults()
    found.task.target, found.data.target = "tests.zoo.Classify", "tests.zoo.Points"
    found.train.global_batch_size = ROWS
    return resolve_config(found)


@functools.cache
def traces() -> Traces:
    """Returns the traces of the program."""
    return Traces(program(), Sharding(), 2, dict.fromkeys(("float32", "bfloat16"), 10.0), 4, print)


@functools.cache
def model() -> CostModel:
    """Returns the cost model on a host of H100."""
    return CostModel(traces(), machine("h100:1x8"))


def numbers() -> int:
    """Returns the number of parameters."""
    return sum(math.prod(x.shape) for x in program().abstract_state.params.values())


@functools.cache
def deep_model(rows: int = DEEP_ROWS) -> CostModel:
    """Returns the cost model of Deep on a host of H100."""
    built = zoo.program(Deep(), batch_size=rows, devices=jax.devices()[:1])
    return CostModel(Traces(built, Sharding(), 2, {"float32": 10.0, "bfloat16": 10.0}, 64, print), machine("h100:1x8"))


def tokens(length: int) -> ArraySource:
    """Returns rows of one document, whose tokens are all 0, as a source of a language model."""
    zeros, weight = np.zeros((8, length), np.int32), np.ones((8, length), np.float32)
    return ArraySource(
        {"tokens": zeros, "targets": zeros, "segment_ids": zeros + 1, "positions": zeros, "weight": weight}
    )
