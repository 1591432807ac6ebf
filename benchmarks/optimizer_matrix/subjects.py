"""The optimizers of the table with their settings, the meshes, and the tiny decoders that they train."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.api.prepared import program
from engine.base.types import Device
from engine.compile.program import Program
from engine.config import defaults
from engine.config.override import assign

DECODER = "convoy_zoo.models.decoder.LanguageModel"
MOE = "convoy_zoo.models.moe_decoder.MoeLanguageModel"
SIZE = {"vocabulary": 64, "width": 16, "hidden": 32, "depth": 2, "heads": 4, "kv_heads": 4}
ROWS, LENGTH = 8, 16

DECAYED = {"learning_rate": 0.01, "weight_decay": 0.1}
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"target": "optax.adamw", **DECAYED},
    "nadamw": {"target": "optax.nadamw", **DECAYED},
    "lion": {"target": "optax.lion", **DECAYED, "learning_rate": 1e-3},
    "adafactor": {"target": "engine.optimizers.adafactor", **DECAYED, "smallest": 8},
    "lamb": {"target": "engine.optimizers.lamb", **DECAYED},
    "ademamix": {"target": "optax.contrib.ademamix", **DECAYED},
    "schedule_free_sgd": {"target": "engine.optimizers.schedule_free_sgd", **DECAYED, "learning_rate": 0.1},
    "schedule_free_adamw": {"target": "engine.optimizers.schedule_free_adamw", **DECAYED},
    "muon": {"target": "engine.optimizers.muon", **DECAYED, "adam_learning_rate": 0.005},
    "soap": {"target": "engine.optimizers.soap", **DECAYED, "frequency": 2},
    "mars": {"target": "engine.optimizers.mars", **DECAYED},
    "adam_mini": {"target": "engine.optimizers.adam_mini", **DECAYED},
}
"""Name -> settings of the config section `optimizer`."""
MIXES: Mapping[str, Mapping[str, str]] = {
    "element-wise": {
        "attention": "nadamw",
        "gate": "ademamix",
        "up": "adam_mini",
        "norm": "lion",
        "": "adamw",
    },
    "averages": {"attention": "schedule_free_sgd", "": "schedule_free_adamw"},
    "norms of arrays": {"attention": "adafactor", "gate": "mars", "": "lamb"},
    "matrices": {"query": "muon", "attention": "soap", "down": "soap", "": "muon"},
}
"""Name -> optimizer of the parameters of whose paths each expression is a part, in one run; "" has the others."""

MESHES: Mapping[str, Mapping[str, Any]] = {
    "fsdp": {"mesh.fsdp": 8},
    "fsdp x tensor": {"mesh.fsdp": 2, "mesh.tensor": 4},
    "expert": {"mesh.expert": 4, "mesh.data": 2},
    "pipeline": {"mesh.pipeline": 2, "mesh.data": 2, "mesh.tensor": 2},
    "ZeRO-1": {"mesh.data": 8, "sharding.zero1": True},
}
"""Name -> settings of the config. The mesh `expert` has the decoder with experts, the others the dense one."""
DEVICES = 8
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "accumulation": {"train.accumulate": 2},
    "EMA": {"train.ema_decay": 0.9},
    "LoRA": {},
    "bf16": {"train.precision": "bfloat16"},
    "K steps": {},
}
"""Other settings with which each optimizer runs -> settings of the config."""
WIDE = "wide"
"""The setting of a decoder of 2.6 million parameters, for times."""
MATCH = "(query|key|value|out|gate|up|down)/kernel$"
"""The kernels that LoRA adapts."""


class Text:
    """Rows of random tokens.

    Args:
        length: tokens of a row.
        rows: number of rows.
    """

    def __init__(self, length: int = LENGTH, rows: int = 64):
        self.length, self.rows = length, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng(index).integers(0, SIZE["vocabulary"], self.length + 1, np.int32)
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "segment_ids": np.ones(self.length, np.int32),
            "positions": np.arange(self.length, dtype=np.int32),
            "weight": np.ones(self.length, np.float32),
        }


def has_experts(mesh: str) -> bool:
    """Returns whether the decoder of a mesh has experts."""
    return mesh == "expert"


def config(optimizer: str, experts: bool = False, settings: Mapping[str, Any] | None = None) -> Any:
    """Returns a config with one of the optimizers.

    Args:
        optimizer: a key of OPTIMIZERS or MIXES.
        experts: whether the decoder has experts.
        settings: path of a config field -> value.
    """
    c = defaults()
    size = {**SIZE, "capacity_factor": None, "experts": 8} if experts else SIZE
    c.task = dict(target=MOE if experts else DECODER, **size)
    c.data = dict(target=f"{__name__}.Text", threads=1)
    mix = MIXES.get(optimizer, {"": optimizer})
    groups = {name: {"match": name, **OPTIMIZERS[part]} for name, part in mix.items() if name}
    # Clipping would make each update depend on the rounding of the norm of all gradients.
    c.optimizer = {"schedule": "constant", "decay": "all", "clip_norm": None, **OPTIMIZERS[mix[""]], "groups": groups}
    c.train.global_batch_size, c.train.total = ROWS, "8 steps"
    c.checkpoint.best = None
    c.log.progress, c.log.tensorboard = "none", False
    for path, value in (settings or {}).items():
        assign(c, path, value)
    return c


@functools.cache
def built(optimizer: str, mesh: str | None = None, experts: bool = False, setting: str = "") -> Program:
    """Returns the program of an optimizer.

    Args:
        optimizer: a key of OPTIMIZERS or MIXES.
        mesh: a key of MESHES, which decides whether the decoder has experts; None for one device.
        experts: whether the decoder of one device has experts.
        setting: a key of SETTINGS, or WIDE.
    """
    devices: Sequence[Device] = jax.devices()[: DEVICES if mesh else 1]
    more = {**(MESHES[mesh] if mesh else {}), **SETTINGS.get(setting, {})}
    c = config(optimizer, has_experts(mesh) if mesh else experts, more)
    if setting == "LoRA":
        c.task = dict(target="engine.adapters.adapted", task=c.task, match=MATCH, rank=2, alpha=4)
    if setting == WIDE:
        c.task = dict(target=DECODER, **{**SIZE, "width": 256, "hidden": 1024, "heads": 4, "vocabulary": 1024})
    return program(c, devices)[0]
