"""The programs that `python -m benchmarks.aot` compiles."""

import dataclasses
from collections.abc import Mapping

from benchmarks.aot.programs import Job

V5E, H100 = "v5e:4x4", "h100:1x8"
AUTO, FULL = {"train.remat": "auto"}, {"train.remat": "full"}


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """A program of the engine, and whether the same mathematics is also compiled as one plain jit."""

    job: Job
    plain: bool = True


ROWS: Mapping[str, RowSpec] = {
    "v5e-fsdp": RowSpec(Job(V5E, "1b", {"fsdp": 16}, settings=AUTO)),
    "v5e-tensor": RowSpec(Job(V5E, "1b", {"fsdp": 4, "tensor": 4}, settings=AUTO)),
    "v5e-full": RowSpec(Job(V5E, "1b", {"fsdp": 16}, settings=FULL), plain=False),
    "v5e-zero1": RowSpec(Job(V5E, "1b", {"data": 16}, settings={**AUTO, "sharding.zero1": True}), plain=False),
    "v5e-moe": RowSpec(Job(V5E, "moe", {"fsdp": 4, "expert": 4}, settings=AUTO), plain=False),
    "v5e-pipeline": RowSpec(Job(V5E, "tiny", {"fsdp": 4, "pipeline": 4}, batch=64), plain=False),
    "v5e-context": RowSpec(Job(V5E, "tiny", {"fsdp": 4, "context": 4}), plain=False),
    "h100-fsdp": RowSpec(Job(H100, "1b", {"fsdp": 8}, settings=AUTO)),
    "h100-full": RowSpec(Job(H100, "1b", {"fsdp": 8}, settings=FULL), plain=False),
    "h100-moe": RowSpec(Job(H100, "moe", {"fsdp": 2, "expert": 4}, settings=AUTO), plain=False),
    "h100-moe-32": RowSpec(Job("h100:2x8", "moe-32", {"dcn.data": 2, "fsdp": 8}, batch=64, time=4096), plain=False),
    "h100-pipeline": RowSpec(Job(H100, "tiny", {"fsdp": 2, "pipeline": 4}, batch=64), plain=False),
    "h100-context": RowSpec(Job(H100, "tiny", {"fsdp": 2, "context": 4}), plain=False),
}
"""Name -> row. 1b is a decoder of 1.16 B parameters."""

TINY: Mapping[str, RowSpec] = {
    "v5e-fsdp": RowSpec(Job(V5E, "tiny", {"fsdp": 16}, time=256, settings=FULL)),
    "h100-fsdp": RowSpec(Job(H100, "tiny", {"fsdp": 8}, time=256, settings=FULL)),
}
"""Rows at tiny sizes, to try the programs."""
