"""The models that the accelerator benchmark trains: sizes, first weights, data, and how many FLOPs a step takes.

The names of the weights are those of the engine's models; a name that begins with STACK has a first dimension for the
layers. MFU follows the engine's count in closed form (`engine/compile/flops.py`; Chowdhery et al. 2022, PaLM,
appendix B): 6 N FLOPs for each token and 12 times layers, width and sequence length for attention, of which causal
order saves half. N leaves out embeddings, which are looked up. This file imports numpy only.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.accelerator import first_weights

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01
STACK = "stack/layers/"
ONES, ZEROS = -1.0, 0.0

type Weights = Mapping[str, tuple[tuple[int, ...], float]]
"""Name -> shape and standard deviation of the first values; ONES or ZEROS for constants."""


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether weight decay applies: to weights with two or more dimensions, not counting that of the layers."""
    return len(shape) - name.startswith(STACK) >= 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, its data and the settings of its measurement; subclasses fill it in."""

    batch: int
    steps: int  # steps of a turn
    turns: int
    together: bool = True  # whether the state of all loops fits into memory at the same time
    precision: str = "bfloat16"
    task = ""  # target of the engine's Task
    units = "tokens"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the engine's Task."""
        raise NotImplementedError

    @property
    def weights(self) -> Weights:
        """The first weights."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape, _ in self.weights.values())

    @property
    def units_per_step(self) -> int:
        """Tokens or images in a batch."""
        return self.batch

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of a step by the closed formula; 0 if there is none."""
        return 0.0

    def data(self, rows: int) -> dict[str, np.ndarray]:
        """Returns arrays of so many examples."""
        raise NotImplementedError

    def rows(self) -> int:
        """Returns the number of examples: those of all steps, or of 16 steps, which repeat."""
        return self.batch * min(16, self.steps * (self.turns + 2))


@dataclasses.dataclass(frozen=True)
class Decoder(Model):
    """convoy_zoo.models.decoder.LanguageModel."""

    width: int = 768
    hidden: int = 2048
    depth: int = 12
    heads: int = 12
    time: int = 2048
    vocabulary: int = 32768
    task = "benchmarks.accelerator.engine_worker.EngineDecoder"

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("vocabulary", "width", "hidden", "depth", "heads")
        return {name: getattr(self, name) for name in names}

    @property
    def weights(self) -> Weights:
        return {
            "embed/table": ((self.vocabulary, self.width), 0.02),
            "head/kernel": ((self.width, self.vocabulary), self.width**-0.5),
            "norm/scale": ((self.width,), ONES),
            **{f"{STACK}norms/{i}/scale": ((self.depth, self.width), ONES) for i in range(2)},
            **{
                f"{STACK}attention/{name}/kernel": ((self.depth, self.width, self.width), self.width**-0.5)
                for name in ("query", "key", "value", "out")
            },
            **self.feed_forward,
        }

    @property
    def feed_forward(self) -> Weights:
        """Weights of the feed-forward part of the layers."""
        wide, narrow = (self.depth, self.width, self.hidden), (self.depth, self.hidden, self.width)
        return {
            f"{STACK}feed_forward/gate/kernel": (wide, self.width**-0.5),
            f"{STACK}feed_forward/up/kernel": (wide, self.width**-0.5),
            f"{STACK}feed_forward/down/kernel": (narrow, self.hidden**-0.5),
        }

    @property
    def units_per_step(self) -> int:
        return self.batch * self.time

    @property
    def flops_per_step(self) -> float:
        used = self.parameters - self.vocabulary * self.width - self.unused
        return (6 * used + 6 * self.depth * self.width * self.time) * self.units_per_step

    @property
    def unused(self) -> int:
        """Parameters that a token does not use."""
        return 0

    def data(self, rows: int) -> dict[str, np.ndarray]:
        return {"tokens": first_weights.markov_tokens(rows, self.time, self.vocabulary)}


@dataclasses.dataclass(frozen=True)
class Moe(Decoder):
    """convoy_zoo.models.moe_decoder.MoeLanguageModel."""

    experts: int = 8
    top_k: int = 2
    capacity_factor: float = 1.25
    task = "benchmarks.accelerator.engine_worker.EngineMoe"

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("experts", "top_k", "capacity_factor")
        return super().arguments | {name: getattr(self, name) for name in names}

    @property
    def feed_forward(self) -> Weights:
        wide, narrow = (self.width, self.hidden), (self.hidden, self.width)
        return {
            f"{STACK}feed_forward/router": ((self.depth, self.width, self.experts), self.width**-0.5),
            f"{STACK}feed_forward/gate": ((self.depth, self.experts, *wide), self.width**-0.5),
            f"{STACK}feed_forward/up": ((self.depth, self.experts, *wide), self.width**-0.5),
            f"{STACK}feed_forward/down": ((self.depth, self.experts, *narrow), self.hidden**-0.5),
        }

    @property
    def unused(self) -> int:
        return self.depth * (self.experts - self.top_k) * 3 * self.width * self.hidden


@dataclasses.dataclass(frozen=True)
class Vit(Model):
    """convoy_zoo.models.vit.Vit."""

    size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 10
    task = "benchmarks.accelerator.engine_worker.EngineVit"
    units = "images"

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("size", "patch", "width", "depth", "heads", "classes")}

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.size // self.patch) ** 2

    @property
    def weights(self) -> Weights:
        width, depth = self.width, self.depth
        found = {
            "embed/kernel": ((self.patch**2, width), 1 / self.patch),
            "embed/bias": ((width,), ZEROS),
            "positions": ((self.patches, width), 0.02),
            "norm/scale": ((width,), ONES),
            "norm/bias": ((width,), ZEROS),
            "head/kernel": ((width, self.classes), width**-0.5),
            "head/bias": ((self.classes,), ZEROS),
            f"{STACK}attention/out/kernel": ((depth, width, width), width**-0.5),
            f"{STACK}up/kernel": ((depth, width, 4 * width), width**-0.5),
            f"{STACK}up/bias": ((depth, 4 * width), ZEROS),
            f"{STACK}down/kernel": ((depth, 4 * width, width), (4 * width) ** -0.5),
            f"{STACK}down/bias": ((depth, width), ZEROS),
        }
        for i in range(3):
            found[f"{STACK}attention/project/{i}/kernel"] = (depth, width, width), width**-0.5
        for i in range(2):
            found[f"{STACK}norms/{i}/scale"] = (depth, width), ONES
            found[f"{STACK}norms/{i}/bias"] = (depth, width), ZEROS
        return found

    @property
    def flops_per_step(self) -> float:
        used = self.parameters - self.patches * self.width - self.width * self.classes
        return (6 * used + 12 * self.depth * self.width * self.patches) * self.patches * self.batch

    def data(self, rows: int) -> dict[str, np.ndarray]:
        return first_weights.images(rows, self.size, self.classes)


@dataclasses.dataclass(frozen=True)
class Cnn(Model):
    """convoy_zoo.models.fashion_mnist.Fashion, whose images have 28x28 pixels; batch normalisation is part of it."""

    width: int = 64
    precision: str = "float32"
    task = "benchmarks.accelerator.engine_worker.EngineCnn"
    units = "images"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"width": self.width}

    @property
    def weights(self) -> Weights:
        width = self.width
        return {
            "conv1/kernel": ((5, 5, 1, width), 25**-0.5),
            "norm1/scale": ((width,), ONES),
            "norm1/bias": ((width,), ZEROS),
            "conv2/kernel": ((3, 3, width, 2 * width), (9 * width) ** -0.5),
            "norm2/scale": ((2 * width,), ONES),
            "norm2/bias": ((2 * width,), ZEROS),
            "dense/kernel": ((98 * width, 128), (98 * width) ** -0.5),
            "dense/bias": ((128,), ZEROS),
            "head/kernel": ((128, 10), 128**-0.5),
            "head/bias": ((10,), ZEROS),
        }

    def data(self, rows: int) -> dict[str, np.ndarray]:
        return first_weights.images(rows, 28, 10)


MODELS: Mapping[str, Model] = {
    "decoder-125m": Decoder(batch=8, steps=20, turns=5),
    "decoder-350m": Decoder(batch=8, steps=10, turns=5, together=False, width=1024, hidden=2816, depth=24, heads=16),
    "decoder-1b": Decoder(batch=4, steps=8, turns=4, together=False, width=2048, hidden=5632, depth=20, heads=16),
    "moe": Moe(batch=8, steps=10, turns=5, hidden=1024, depth=8),
    "vit": Vit(batch=256, steps=20, turns=5),
    "cnn": Cnn(batch=1024, steps=200, turns=5),
}
_TINY: dict[str, Any] = dict(batch=4, steps=2, turns=2, depth=2, width=32, heads=2)
_TINY_DECODER: dict[str, Any] = {**_TINY, "hidden": 64, "time": 16, "vocabulary": 64}
_FLOAT32: dict[str, Any] = {**_TINY_DECODER, "precision": "float32"}
TINY_MODELS: Mapping[str, Model] = {
    "decoder-125m": Decoder(**_FLOAT32),
    "decoder-350m": Decoder(**_FLOAT32, together=False),
    "decoder-1b": Decoder(**_FLOAT32, together=False),
    "moe": Moe(**_TINY_DECODER),
    "vit": Vit(**_TINY, size=28, patch=4),
    "cnn": Cnn(batch=8, steps=2, turns=2, width=4),
}


def model(name: str, tiny: bool) -> Model:
    """Returns a model at its full or its tiny size."""
    return (TINY_MODELS if tiny else MODELS)[name]
