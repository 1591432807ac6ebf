"""Small Tasks with data, and the program of a Task without a run."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import ArraySource, Loss, Mean, Task
from engine.base.duration import RunSize
from engine.compile.program import DTYPES, Program
from engine.config.schema import MeshSpec, Optimizer
from engine.data.batch import Batch
from engine.layers import Dropout, fold_in
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from engine.training.model import describe
from engine.training.optimizer import build_optimizer
from engine.training.step_spec import StepSpec
from tests import program_cache

SIZE = 16  # values of an example

# A run skips a save that is due while another one is in flight for over a second. On a busy machine, that would skip
# saves that tests expect, so runs of tests wait for the save in flight unless this variable is set.
SKIP_SAVES = "CONVOY_TEST_SKIP_SAVES"
with contextlib.suppress(ImportError):  # Bazel gives tests of lower packages no checkpoints
    from engine.checkpoint import timeouts

    if SKIP_SAVES not in os.environ:
        timeouts.RECENT_S = 60.0  # pyright: ignore[reportAttributeAccessIssue]

program_cache.install()


class Mlp(nnx.Module):
    """Two hidden layers."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(SIZE, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.head = nnx.Linear(width, 4, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, x, rng=None):
        for i, layer in enumerate(self.hidden):
            x = self.dropout(nnx.relu(layer(x)), fold_in(rng, i))
        return self.head(x)


class Linear(nnx.Module):
    """One layer on many copies of the values: as many weights as `Mlp`, in a program that compiles sooner."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.width, self.head = width, nnx.Linear(SIZE * width, 4, rngs=rngs)

    def __call__(self, x, rng=None):
        return self.head(jnp.tile(x, (1, self.width)))


class Cnn(nnx.Module):
    """A strided convolution with batch normalisation."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, width, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.head = nnx.Linear(4 * width, 4, rngs=rngs)

    def __call__(self, x, rng=None):
        x = nnx.relu(self.norm(self.conv(x.reshape(-1, 4, 4, 1))))
        return self.head(self.dropout(x.reshape(len(x), -1), rng))


class Decoder(nnx.Module):
    """One causal attention block; the values of an example are rounded to tokens."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.embed = nnx.Embed(8, width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs, kernel_metadata={"out_sharding": ("embed", "mlp")})
        self.down = nnx.Linear(2 * width, width, rngs=rngs, kernel_metadata={"out_sharding": ("mlp", "embed")})
        self.head = nnx.Linear(width, 4, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, x, rng=None):
        x = self.embed(jnp.clip(x * 2 + 4, 0, 7).astype(jnp.int32))  # [batch, time, width]
        x = x + self.attention(x, mask=nnx.make_causal_mask(x[..., 0]))
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.head(self.dropout(x, rng).mean(1))


MODELS = {"mlp": Mlp, "linear": Linear, "cnn": Cnn, "decoder": Decoder}


@dataclasses.dataclass
class Classify(Task):
    """Classifies examples into four classes; some examples have weight 0."""

    model: str = "mlp"
    width: int = 32
    dropout: float = 0.0

    def build(self, rngs):
        return MODELS[self.model](self.width, self.dropout, rngs=rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["x"], rng)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return Loss.of(losses, batch["valid"], {"accuracy": Mean.of(logits.argmax(-1) == batch["y"], batch["valid"])})


def examples(n: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns `x` `[n, 16]`, `y` `[n]` int32 and `valid` `[n]`, of which about 80 % are 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, SIZE)).astype(np.float32)
    y = (x[:, :2] > 0) @ np.array([1, 2])
    return {"x": x, "y": y.astype(np.int32), "valid": (rng.random(n) < 0.8).astype(np.float32)}


def source(n: int = 64, seed: int = 0) -> ArraySource:
    """Returns the examples as a source, for configs: data.target=tests.zoo.source."""
    return ArraySource(examples(n, seed))


class TimedSource(ArraySource):
    """The examples, with an offset that depends on the length of the run."""

    def transform(self, example, rng, context):
        return {**example, "x": example["x"] + np.float32(context.step / context.total_steps)}


def timed() -> TimedSource:
    """Returns such a source of 64 examples."""
    return TimedSource(examples())


def program(
    task: Task,
    *,
    mesh: MeshSpec | None = None,
    batch_size: int = 16,
    accumulate: int = 1,
    approximate_accumulation: bool = False,
    precision: str = "float32",
    ema_decay: float | None = None,
    skip_bad: bool = False,
    example: Any = None,
    seed: int = 0,
    layout: Mapping[str, Any] | None = None,
    devices: int | Sequence[Any] | None = None,
    **optimizer: Any,
) -> Program:
    """Returns the program of a Task.

    Without `mesh` it uses one device; with `mesh` all devices, the first `devices`, or the given `devices`. `layout`
    holds fields of Layout, `optimizer` fields of the config section optimizer.
    """
    found = devices if isinstance(devices, Sequence) else jax.devices()[: 1 if mesh is None else devices]
    config = Optimizer(**{"learning_rate": 0.01, "schedule": "constant", **optimizer})
    placement = Layout(mesh=make_mesh(mesh or MeshSpec(), found), precision=precision, **(layout or {}))
    with active(placement):
        model = describe(task, config.trainable)
    spec = StepSpec(
        task=task,
        model=model,
        optimizer=build_optimizer(
            config, RunSize(batch_size, 64, 10), {path: model.params[path] for path in model.trained}, model.names
        ),
        layout=placement,
        accumulate=accumulate,
        approximate_accumulation=approximate_accumulation,
        compute_dtype=DTYPES[precision],
        ema_decay=ema_decay,
        skip_bad=skip_bad,
        total_steps=10,
        steps_per_epoch=4.0,
    )
    if example is None:
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples(1))
    return Program(spec, example, batch_size=batch_size, seed=seed)


def run(program: Program, batches: list[Any], k: int = 1) -> tuple[Any, np.ndarray]:
    """Trains on host batches, K steps per dispatch; returns the state and metrics `[steps, names, 2]`."""
    state, metrics = program.init(), []
    for i in range(0, len(batches), k):
        placed = tuple(jax.device_put(batch(b), program.spec.batch_sharding) for b in batches[i : i + k])
        state, values = program.steps(k)(state, placed, program.skip_mask((False,) * len(placed)))
        metrics.append(np.asarray(values))
    return state, np.concatenate(metrics)


def batch(examples: Any) -> Batch:
    """Returns the examples as a batch with weight 1 for every row; a Batch unchanged."""
    if isinstance(examples, Batch):
        return examples
    return Batch(examples, np.ones(len(jax.tree.leaves(examples)[0]), np.float32))


def batches(count: int, batch_size: int = 16) -> list[dict[str, np.ndarray]]:
    """Returns host batches with different examples."""
    return [examples(batch_size, seed) for seed in range(count)]


def losses(metrics: np.ndarray) -> np.ndarray:
    """Returns the mean loss of each step `[steps]`."""
    return metrics[:, 0, 0] / metrics[:, 0, 1]


def assert_equal(a: Any, b: Any) -> None:
    """Checks that all leaves are bitwise equal."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    """Checks that all leaves are equal within an absolute tolerance."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), *jax.device_get((a, b)))
