"""The harness of pairs: settings of a run that must not change its result, in rows that have each pair of them.

A row of pairs_test.py trains a small decoder with its settings and with all others off. The rows are a pairwise
covering array: of each two settings, every combination of on and off occurs in a row. `REFUSED` lists combinations that
the engine refuses, with its sentence.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convoy_zoo.models.actor_critic import CartPole
from convoy_zoo.models.attention import whole_rows
from convoy_zoo.models.decoder import Block, Decoder, LanguageModel
from convoy_zoo.models.gan import DigitsGan
from convoy_zoo.models.scenes import Scenes
from engine import ArraySource, Bucketed, layers
from engine.api import prepared
from engine.config.schema import Data, Group, MeshSpec
from engine.data.adapt import as_source
from engine.data.feed import Batching, TrainFeed
from tests import runs, zoo
from tests.row_state import Continue

SETTINGS = ("1f1b", "ZeRO-1", "float8", "packed", "optimizers", "EMA", "K steps", "stream", "adapters", "microbatches")
"""1f1b: in a pipeline; otherwise fsdp, data and tensor. Optimizers: one for each of two groups. Stream: the data can
only be read in order. Adapters: each example chooses one of several. Microbatches: `train.accumulate`."""
ROWS = (
    "1f1b float8",
    "packed optimizers K-steps adapters microbatches",
    "1f1b ZeRO-1 float8 packed optimizers EMA stream adapters microbatches",
    "ZeRO-1 float8 EMA K-steps microbatches",
    "1f1b ZeRO-1 optimizers K-steps stream",
    "packed EMA K-steps stream",
    "EMA adapters",
)
STEPS, BATCH, TIME, VOCABULARY, ADAPTERS, RANK = 2, 16, 16, 64, 3, 4
PIPELINE, OTHER = MeshSpec(pipeline=2, data=4), MeshSpec(data=2, fsdp=2, tensor=2)
CHANGES_RESULT = {"float8", "packed", "optimizers", "adapters"}
"""Settings with which the one device trains, too. The others are how the same result is computed."""
GROUPS = {"stack": Group(match="^stack/", target="optax.adamw", learning_rate=1e-3, arguments={"eps": 1e-3})}


def settings_of(row: str) -> frozenset[str]:
    """Returns the settings of a row."""
    return frozenset(name.replace("-", " ") if name == "K-steps" else name for name in row.split())


class Adapted(Decoder):
    """A decoder with a low-rank change of its embeddings, which each example chooses (Hu et al. 2021)."""

    def __init__(self, config: LanguageModel, rngs: nnx.Rngs):
        super().__init__(config, Block, rngs)
        draw = nnx.initializers.normal(0.3)
        self.down = nnx.Param(draw(rngs.params(), (ADAPTERS, config.width, RANK)))
        self.up = nnx.Param(draw(rngs.params(), (ADAPTERS, RANK, config.width)))

    def __call__(self, batch, rng):
        x = self.embed(batch["tokens"])
        x += jnp.einsum("btw,bwr,bru->btu", x, self.down[...][batch["adapter"]], self.up[...][batch["adapter"]])
        x = layers.constrain(x, "batch", "tokens", None)
        angles = layers.rotary_angles(batch["positions"], self.head_dim)
        x = self.stack({"x": x}, angles, batch["segment_ids"], batch["weight"], rng=rng)["x"]
        assert self.head is not None
        return layers.cross_entropy(whole_rows(self.norm(x)), self.head.kernel[...], batch["targets"]), {}


@dataclasses.dataclass
class Language(LanguageModel):
    """A small language model, with or without adapters."""

    vocabulary: int = VOCABULARY
    width: int = 16
    hidden: int = 32
    depth: int = 2
    heads: int = 2
    adapts: bool = False

    def build(self, rngs):
        return Adapted(self, rngs) if self.adapts else super().build(rngs)


def examples(packed: bool) -> dict[str, np.ndarray]:
    """Rows of one document, or of three documents with padding at the end."""
    rng, count = np.random.default_rng(0), STEPS * BATCH
    tokens = rng.integers(0, VOCABULARY, (count, TIME + 1), np.int32)
    segments, positions = np.ones((count, TIME), np.int32), np.tile(np.arange(TIME, dtype=np.int32), (count, 1))
    weight = np.ones((count, TIME), np.float32)
    if packed:
        segments = np.repeat([[1, 2, 3, 0]], count, 0).repeat(TIME // 4, 1).astype(np.int32)
        positions, weight = positions % (TIME // 4), ((positions % 4 != 3) & (segments > 0)).astype(np.float32)
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments, "positions": positions,
        "weight": weight, "adapter": rng.integers(0, ADAPTERS, count, np.int32),
    }  # fmt: skip


class Passes:
    """Examples that can only be iterated."""

    def __init__(self, source: ArraySource):
        self._source = source

    def __iter__(self):
        return (self._source[i] for i in range(len(self._source)))


def source_of(packed: bool, stream: bool) -> Any:
    """Returns the examples, with random access or as a stream."""
    arrays = ArraySource(examples(packed))
    return as_source(Passes(arrays), "data") if stream else arrays


@dataclasses.dataclass
class Result:
    """What a row is compared by."""

    losses: np.ndarray
    changes: dict[str, np.ndarray]
    """Path -> parameter after the last step minus the initial one."""
    averages: dict[str, np.ndarray] | None


def train(settings: frozenset[str], devices: int) -> Result:
    """Trains with these settings on one device or on eight."""
    one, layout = devices == 1, {"zero1": "ZeRO-1" in settings}
    if "1f1b" in settings:
        layout |= {"schedule": "1f1b", "microbatches": 2}
    source = source_of("packed" in settings, "stream" in settings)
    program = zoo.program(
        Language(adapts="adapters" in settings),
        mesh=None if one else PIPELINE if "1f1b" in settings else OTHER,
        batch_size=BATCH,
        accumulate=2 if "microbatches" in settings else 1,
        precision="float8" if "float8" in settings else "float32",
        ema_decay=0.5 if one or "EMA" in settings else None,
        example=_example(),
        layout=layout,
        target="optax.sgd",
        learning_rate=0.03,
        arguments={"momentum": 0.9},
        groups=GROUPS if "optimizers" in settings else {},
    )
    begin = first_params("adapters" in settings)
    state, k = program.init({path: jnp.asarray(x) for path, x in begin.items()}), STEPS if "K steps" in settings else 1
    data = Data(shuffle=False, threads=1, prefetch=1)
    feed = TrainFeed(source, data, Batching(BATCH, 0, program.spec.batch_sharding, STEPS), range(STEPS))
    found = []
    for _ in range(0, STEPS, k):
        state, metrics = program.steps(k)(state, feed.next(k), program.skip_mask((False,) * k))
        found.append(zoo.losses(np.asarray(metrics)))
    feed.close()
    params, averages = jax.device_get((state.params, state.ema))
    return Result(np.concatenate(found), {path: params[path] - begin[path] for path in begin}, averages)


@functools.cache
def first_params(adapts: bool) -> dict[str, np.ndarray]:
    """Returns the initial parameters, the same for every row."""
    return jax.device_get(zoo.program(Language(adapts=adapts), example=_example(), batch_size=BATCH).init().params)


def _example() -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples(False))


def _lengths() -> Any:
    config = runs.config(data=dict(target=f"{__name__}.bucketed"), train__steps_per_dispatch=2, evaluations={})
    return prepared.program(config)


def bucketed() -> Bucketed:
    """Returns scenes in batches of two lengths."""
    return Bucketed(Scenes(32, most=60), [20, 60], ("agents", "step"))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "own update x microbatches": (
        lambda: zoo.program(CartPole(), example={"seed": jax.ShapeDtypeStruct((), jnp.uint32)}, accumulate=2),
        "train.accumulate = 2: CartPole.update computes the whole step, which the engine cannot split into "
        "microbatches. Use accumulate=1, and split the batch in the update.",
    ),
    "batch statistics x microbatches": (
        lambda: zoo.program(zoo.Classify("cnn"), accumulate=2),
        "train.accumulate = 2: the forward pass changes norm/mean, norm/var in each microbatch",
    ),
    "state of rows x microbatches": (
        lambda: zoo.program(Continue(), accumulate=2),
        "train.accumulate = 2: the forward pass carries carry [16, 8] from batch to batch, for each of the 16 rows",
    ),
    "float8 x no product that it quantizes": (
        lambda: zoo.program(zoo.Classify(), precision="float8"),
        "train.precision = float8: the model of Classify has no product that it quantizes.",
    ),
    "losses of groups x one optimizer": (
        lambda: zoo.program(DigitsGan(), example={"image": jax.ShapeDtypeStruct((8, 8), jnp.float32)}),
        "DigitsGan.loss returned a loss 'critic', but optimizer.groups has no such group.",
    ),
    "several lengths x K steps": (
        _lengths,
        "train.steps_per_dispatch = 2: the steps of a dispatch need batches of one shape",
    ),
}
"""What is refused -> what tries it, and the begin of the sentence. meshes_test.py has mesh axes that no layer uses."""


@functools.cache
def alone(settings: frozenset[str]) -> Result:
    """The same on one device, with the settings that change the result only."""
    return train(settings & CHANGES_RESULT, 1)


def combinations(rows: tuple[str, ...]) -> set[tuple[tuple[str, bool], tuple[str, bool]]]:
    """Returns each combination of two settings, on or off, that occurs in a row."""
    return {
        ((a, a in row), (b, b in row)) for row in map(settings_of, rows) for a, b in itertools.combinations(SETTINGS, 2)
    }
