"""What the benchmarks train: three models, each as a config of the engine and as a bare loop, and two orders of data.

The digits are real scans. The other data is noise, since only the time of a step is measured.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import bare
from engine import ArraySource, Loss, Mean, Sequences, Task
from engine.compile.build import build_program
from engine.config import defaults, validate
from engine.config.override import assign
from engine.config.schema import Config
from engine.config.target import build
from engine.data.feed import Batching, TrainFeed
from engine.data.source_adapter import indexed
from engine.parallel.mesh import batch_sharding, make_mesh, replicated

MLP, CNN, DIGITS = NAMES = ("mlp", "cnn", "digits")
JOINT, DRIVES = WITHOUT_BARE_LOOP = ("joint", "drives")
TITLES = {
    MLP: "perceptron 784-256-128-10, batch 128",
    CNN: "small CNN, batch 128",
    DIGITS: "digits, batch 64",
    JOINT: "the perceptron on two datasets, 64 rows of each",
    DRIVES: "the perceptron on 16 drives, 8 frames of each",
}
EXAMPLES = 10_000


class Perceptron(nnx.Module):
    """Dense layers; `sizes` includes the input and the output."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes[:-1])])
        self.head = nnx.Linear(sizes[-2], sizes[-1], rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


@dataclasses.dataclass
class Classify(Task):
    """Classifies with a perceptron of these sizes."""

    sizes: tuple[int, ...] = (784, 256, 128, 10)

    def build(self, rngs):
        return Perceptron(tuple(self.sizes), rngs=rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Loss.of(losses, metrics={"accuracy": Mean.of(jnp.argmax(logits, axis=-1) == batch["label"])})


class ClassifyBoth(Task):
    """Classifies the rows of two datasets."""

    def build(self, rngs):
        return Classify().build(rngs)

    def loss(self, model, batch, rng):
        found = {name: Classify().loss(model, rows, rng) for name, rows in batch.items()}
        return Loss.sum(
            **{name: Loss(loss.total, loss.weight) for name, loss in found.items()}
        )  # without metrics of one name


class ClassifyFrames(Classify):
    """Classifies the frames of windows."""

    def loss(self, model, batch, rng):
        logits = model(batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Loss.of(losses, batch["sequence"]["valid"])


def drives(frames: int = 200) -> Sequences:
    """Returns windows of drives of so many of the `vectors`."""
    numbers, times = divmod(np.arange(EXAMPLES), frames)
    return Sequences(vectors(), group=numbers, order=times, length=8, carry=True)


def vectors(size: int = 784, examples: int = EXAMPLES) -> ArraySource:
    """Returns noise `[size]` float32 with random labels."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((examples, size), np.float32)
    return ArraySource({"image": image, "label": rng.integers(0, 10, examples, np.int32)})


def photographs(examples: int = EXAMPLES) -> ArraySource:
    """Returns noise `[28, 28]` uint8 with random labels."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (examples, 28, 28), np.uint8)
    return ArraySource({"image": image, "label": rng.integers(0, 10, examples, np.int32)})


def config(name: str, *, steps: int, **settings: Any) -> Config:
    """Returns the config of a model for a number of steps; `train__steps_per_dispatch=8` sets a field."""
    c = defaults()
    c.name = name
    c.train.total = f"{steps} steps"
    c.log.progress = "none"
    if name == DIGITS:
        c.task = dict(target="convoy_zoo.models.digits.Digits")
        c.data = dict(target="convoy_zoo.models.digits.scans")
        c.train.global_batch_size = 64
    elif name == CNN:
        c.task = dict(target="convoy_zoo.models.fashion_mnist.Fashion", width=16)
        c.data = dict(target="benchmarks.workloads.photographs")
    elif name == JOINT:
        c.task = dict(target="benchmarks.workloads.ClassifyBoth")
        vectors = dict(target="benchmarks.workloads.vectors")
        c.data = dict(target="engine.Joint", sources=dict(first=vectors, second=vectors))
        c.train.global_batch_size = 64
    elif name == DRIVES:
        c.task = dict(target="benchmarks.workloads.ClassifyFrames")
        c.data = dict(target="benchmarks.workloads.drives")
        c.train.global_batch_size = 16
    else:
        c.task = dict(target="benchmarks.workloads.Classify")
        c.data = dict(target="benchmarks.workloads.vectors")
    for name, value in settings.items():
        assign(c, name.replace("__", "."), value)
    return validate(c)


def train_feed(config: Config) -> TrainFeed:
    """Returns the engine's feed of a config."""
    mesh, source = make_mesh(config.mesh), build(config.data, "data")
    batch_size = config.train.global_batch_size
    return TrainFeed(
        indexed(source, "data"),
        config.data,
        Batching(batch_size, config.train.seed, batch_sharding(mesh)),
        range(config.train.total.steps(batch_size, len(source))),
    )


def bare_loop(config: Config) -> bare.BareLoop:
    """Returns the bare loop of a config: same model, first parameters, batches, optimizer, devices, logging period."""
    mesh, source = make_mesh(config.mesh), build(config.data, "data")
    program, total = build_program(build(config.task, "task"), mesh, source, config)
    first = jax.device_put(jax.device_get(program.init()), replicated(mesh))
    assert config.log.every.unit == "steps"
    return bare.BareLoop(
        bare.convolutions if first.model_state else bare.perceptron,
        first.params,
        first.model_state,
        train_feed(config),
        learning_rate=config.optimizer.learning_rate,
        total_steps=total,
        log_every=int(config.log.every.value),
    )
