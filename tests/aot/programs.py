"""Tiny train steps, compiled once for devices that are absent, and what a test asks of them."""

import dataclasses
import functools
import os

import pytest

from benchmarks.aot.measures import Measures, measure
from benchmarks.aot.programs import SIZES, Compiled, Job, compile_engine
from engine.parallel.collectives import Collective, collectives
from engine.parallel.hlo_text import HloText
from engine.planning import targets

TARGETS = {"tpu": "v5e:4x4", "gpu": "h100:2x8"}
ROWS, TIME = 32, 256
FULL = {"train.remat": "full"}
MESHES = {
    "fsdp": ({"fsdp": 16}, "tiny", FULL),
    "tensor": ({"fsdp": 8, "tensor": 2}, "tiny", FULL),
    "pipeline": ({"fsdp": 4, "pipeline": 2, "context": 2}, "tiny", {}),
    "experts": ({"fsdp": 4, "expert": 4}, "moe-tiny", {}),
}
"""Program -> mesh, model and settings."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step and what its text says."""

    compiled: Compiled
    text: HloText
    collectives: list[Collective]
    measures: Measures
    depth: int

    def kinds(self, *axes: str) -> set[str]:
        """Returns the kinds of the collectives along exactly these mesh axes."""
        return {c.kind for c in self.collectives if c.axes == axes}

    def of_layers(self, kind: str) -> list[Collective]:
        """Returns the collectives of a kind that run once for each layer, or more often."""
        return [c for c in self.collectives if c.kind == kind and c.count >= self.depth]


def require(platform: str) -> None:
    """Skips the tests of a module where the compiler of a platform is not installed. CI has it."""
    if missing := targets.missing(platform):
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing: install the extra aot", pytrace=False)
        pytest.skip(f"compiling for a {platform} needs {missing}, of the extra aot", allow_module_level=True)


@functools.cache
def step(platform: str, name: str) -> Step:
    """Returns a program of MESHES for the devices of a platform."""
    mesh, model, settings = MESHES[name]
    rows = 2 * ROWS if "pipeline" in mesh else ROWS
    job = Job(TARGETS[platform], model, mesh, batch=rows, time=TIME, settings=settings)
    compiled = compile_engine(job, targets.devices(job.target))
    text = str(compiled.executable.as_text())
    return Step(
        compiled,
        HloText.parse(text),
        collectives(text, compiled.mesh),
        measure(compiled.executable, compiled.mesh),
        SIZES[model]["depth"],
    )
