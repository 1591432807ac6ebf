"""Compiles the engine's train step for devices that are absent."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from engine.api.prepared import program
from engine.base.types import Device
from engine.config import defaults
from engine.config.override import assign
from engine.parallel.memory import device_bytes

DECODER = "convoy_zoo.models.decoder.LanguageModel"
MOE = "convoy_zoo.models.moe_decoder.MoeLanguageModel"
SIZES: Mapping[str, Mapping[str, int]] = {
    "1b": {"vocabulary": 32768, "width": 2048, "hidden": 5632, "depth": 20, "heads": 16},
    "moe": {"vocabulary": 32768, "width": 1024, "hidden": 2048, "depth": 16, "heads": 8, "experts": 16, "top_k": 2},
    "moe-32": {"vocabulary": 32768, "width": 2048, "hidden": 1408, "depth": 8, "heads": 16, "experts": 32, "top_k": 4},
    "tiny": {"vocabulary": 1024, "width": 256, "hidden": 1024, "depth": 4, "heads": 4},
    "moe-tiny": {"vocabulary": 1024, "width": 256, "hidden": 512, "depth": 3, "heads": 2, "experts": 8, "top_k": 2},
}
"""Sizes of decoders by name."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A train step to compile.

    Attributes:
        target: a target of `engine/parallel/targets.py`.
        model: key of SIZES.
        mesh: mesh axis -> devices.
        batch: rows of the global batch.
        time: positions of a row.
        settings: path of a config field -> value.
        options: option of the XLA compiler -> value.
    """

    target: str
    model: str = "1b"
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    batch: int = 32
    time: int = 2048
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled train step, its mesh, and the bytes of its state and batch on a device by the shapes of the arrays."""

    executable: jax.stages.Compiled
    mesh: Mesh
    argument_bytes: int
    parameters: int
    remat: str = "full"  # `train.remat`, or what auto has chosen

    @property
    def kind(self) -> str:
        """Kind of the devices, as the hardware table names it."""
        return self.mesh.devices.flat[0].device_kind


class Tokens:
    """Packed rows of one document each, whose tokens are all 0."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        zeros = np.zeros(self.length, np.int32)
        return {
            "tokens": zeros,
            "targets": zeros,
            "segment_ids": zeros + 1,
            "positions": np.arange(self.length, dtype=np.int32),
            "weight": np.ones(self.length, np.float32),
        }


def compile_engine(job: Job, devices: Sequence[Device]) -> Compiled:
    """Compiles one step of the engine for these devices."""
    c = defaults()
    c.task = dict(target=MOE if job.model.startswith("moe") else DECODER, **SIZES[job.model])
    c.data = dict(target="benchmarks.aot.programs.Tokens", length=job.time)
    c.train.total = "1000 steps"
    c.train.global_batch_size = job.batch
    c.train.precision = "bfloat16"
    c.cache.compiled = False
    for name, value in {**{f"mesh.{axis}": size for axis, size in job.mesh.items()}, **job.settings}.items():
        assign(c, name, value)
    c.compiler.options = dict(job.options)
    built, _ = program(c, devices)
    traced = built.trace(1)
    arrays = jax.tree.leaves((built.abstract_state, built.abstract_batch))
    return Compiled(
        traced.lower().compile(),
        built.mesh,
        sum(map(device_bytes, arrays)),
        sum(x.size for x in built.abstract_state.params.values()),
        built.spec.layout.remat,
    )
