"""Compiles the driving workloads for TPUs and GPUs that are absent, and says what a step of each costs.

python -m benchmarks.aot.driving [--rows=h100-lidar_sim,v5e-bev_sim] [--steps=K] [--json=FILE] [--hlo=FOLDER]
python -m benchmarks.aot.driving --list      lists the rows

It needs the extra `aot`, and neither an accelerator nor data. These models have a million parameters: they wait for the
start of kernels and for memory, not for products. All numbers are of one step on one device, with loops multiplied out.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.aot.programs import Compiled
from benchmarks.aot.small import StepCosts, host_starts, step_costs
from convoy_zoo.models.traffic.motion_tokens import NextToken
from convoy_zoo.models.traffic.token_model import TokenModel
from engine.api.prepared import program
from engine.config.override import assign
from engine.parallel.memory import device_bytes
from engine.parallel.targets import devices

TARGETS: Mapping[str, tuple[str, int]] = {"v5e": ("v5e:4x4", 16), "h100": ("h100:1x8", 8)}
"""Name in a row -> target, and its devices."""
GPUS = ("h100",)
STAND_INS = "benchmarks.aot.driving"
COLUMNS = (
    "row",
    "launches",
    "by the host",
    "collectives",
    "MiB moved",
    "GFLOP",
    "padding",
    "MiB sent",
    "GiB held",
    "compile s",
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A driving workload.

    Attributes:
        config: its config, without arguments.
        rows: rows of the batch of each device.
        settings: path of a config field -> value, such as data that need no files.
    """

    config: str
    rows: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _data(name: str) -> dict[str, Any]:
    return {"data": {"target": f"{STAND_INS}.{name}"}}


_SWEEPS = {"task.width": 64, "task.cells": [128, 128], "task.capacity": 30_000}
_IMAGES = {"task.width": 64, "task.cells": [128, 128], "task.strides": [[4, 4], [2, 2], [2, 2]]}
WORKLOADS: Mapping[str, Workload] = {
    "lidar_sim": Workload("configs.lidar_sim", 4),
    "bev_sim": Workload("configs.bev_sim", 2),
    "fusion_sim": Workload("configs.fusion_sim", 2, {"init.sources": {}}),
    "forecast_sim": Workload("configs.forecast_sim", 32, _data("Agents")),
    "motion_tokens": Workload(
        "configs.motion_tokens", 8, {**_data("TokenScenes"), "task.target": f"{STAND_INS}.Tokens"}
    ),
    "forecast_eth_ucy": Workload("configs.forecast_eth_ucy", 8, _data("PackedScenes")),
    "nuscenes_lidar": Workload("configs.nuscenes_lidar", 2, {**_data("Sweeps"), **_SWEEPS}),
    "nuscenes_voxels": Workload("configs.nuscenes_lidar", 2, {**_data("Sweeps"), **_SWEEPS, "task.voxels": 16}),
    "nuscenes_cameras": Workload("configs.nuscenes_cameras", 2, {**_data("Images"), **_IMAGES}),
}
"""Name -> workload. The rows of a device are those that its config trains with on one."""


class Agents:
    """Agents to predict, of the shapes of `convoy_zoo.models.traffic.targets.Targets`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = {"agents": (20, 37), "pieces": (56, 16), "signals": (8, 19)}
        return {
            **{name: np.zeros(shape, np.float32) for name, shape in features.items()},
            "mask": {name: np.ones(count, bool) for name, (count, _) in features.items()},
            "lanes": np.zeros((56, 5, 2), np.float32),
            "speed": np.float32(1),
            "future": np.ones((12, 2), np.float32),
            "type": np.int32(0),
            "group": np.int32(0),
            "near": np.int32(0),
        }


class TokenScenes:
    """Scenes of the shapes of `convoy_zoo.models.traffic.token_scenes.TokenScenes`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        agents, pieces, steps = 32, 256, 17
        return {
            "pose": np.zeros((agents, steps, 3), np.float32),
            "valid": np.ones((agents, steps), bool),
            "size": np.ones((agents, 2), np.float32),
            "type": np.zeros(agents, np.int32),
            "points": np.zeros((pieces, 5, 2), np.float32),
            "width": np.ones(pieces, np.float32),
            "limit": np.ones(pieces, np.float32),
            "kind": np.zeros(pieces, np.int32),
            "road": np.ones(pieces, bool),
            "mask": np.ones(pieces, bool),
            "light": np.zeros((pieces, steps), np.int32),
            "reach": np.float32(50),
        }


class PackedScenes:
    """Rows of the shapes of `convoy_zoo.models.pedestrians.eth_ucy.Rows`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "history": np.zeros((64, 8, 2), np.float32),
            "future": np.zeros((64, 12, 2), np.float32),
            "segment_ids": np.ones(64, np.int32),
            "mask": np.ones(64, bool),
        }


class Boxes:
    """Labels of nuScenes, without data."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "boxes": np.ones((200, 9), np.float32),
            "label": np.zeros(200, np.int32),
            "attribute": np.zeros(200, np.int32),
            "mask": {"objects": np.ones(200, bool)},
        }


class Sweeps(Boxes):
    """Ten sweeps of nuScenes of the shapes of `convoy_zoo.models.street.nuscenes.sweeps`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = super().__getitem__(index)
        mask = {**labels["mask"], "points": np.ones(200_000, bool)}
        return {**labels, "points": np.zeros((200_000, 5), np.float32), "mask": mask}


class Images(Boxes):
    """Six cameras of nuScenes of the shapes of `convoy_zoo.models.street.nuscenes_cameras.samples`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            **super().__getitem__(index),
            "images": np.zeros((6, 256, 704, 3), np.uint8),
            "intrinsics": np.zeros((6, 3, 3), np.float32),
            "poses": np.zeros((6, 4, 4), np.float32),
            "pose": np.zeros(3, np.float32),
        }


class Tokens(NextToken):
    """The simulation of traffic with tokens that need no scenes."""

    def build(self, rngs):
        return TokenModel(self, np.zeros((self.tokens, 3), np.float32), rngs)


def compile_workload(name: str, target: str, steps: int = 1, dump: Path | None = None) -> Compiled:
    """Compiles `steps` steps of a workload in bfloat16, with the rows split over all devices.

    Args:
        name: key of WORKLOADS.
        target: key of TARGETS.
        steps: steps of a dispatch.
        dump: folder for what XLA says of the program; None writes nothing.
    """
    workload, (text, count) = WORKLOADS[name], TARGETS[target]
    c = importlib.import_module(workload.config).get_config()
    c.evaluations, c.checkpoint.best = {}, None
    c.train.total = "1000 steps"
    c.train.precision = "bfloat16"
    c.train.global_batch_size = workload.rows * count
    c.train.steps_per_dispatch = steps
    c.mesh.data = count
    c.cache.compiled = False
    for path, value in workload.settings.items():
        assign(c, path, value)
    built, _ = program(c, devices(text))
    traced = built.trace(steps)
    leaves = jax.tree.leaves((built.abstract_state, built.abstract_batch))
    parameters = sum(x.size for x in built.abstract_state.params.values())
    options = {"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True} if dump else None
    executable = traced.lower().compile(compiler_options=options)
    return Compiled(executable, built.mesh, sum(map(device_bytes, leaves)), parameters)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the rows and prints the table; returns 1 if a row failed."""
    args = _parse(argv)
    rows = [f"{target}-{name}" for target in TARGETS for name in WORKLOADS]
    names = rows if args.rows is None else args.rows.split(",")
    if unknown := [name for name in names if name not in rows]:
        print(f"--rows: {', '.join(unknown)} is unknown. Rows: {', '.join(rows)}.", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(names))
        return 0
    print(_line(COLUMNS), flush=True)
    failed, results = False, {}
    for row in names:
        target, _, name = row.partition("-")
        start = time.process_time()
        try:
            compiled, starts = _compiled(name, target, args.steps)
        except Exception as error:
            failed = True
            print(f"{row}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        seconds = time.process_time() - start
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{row}.txt").write_text(str(compiled.executable.as_text()))
        costs = step_costs(compiled.executable, compiled.mesh, args.steps)
        more = {"host_starts": starts, "parameters": compiled.parameters, "compile_s": round(seconds, 1)}
        results[row] = {**dataclasses.asdict(costs), **more}
        print(_line(_cells(row, costs, starts, seconds)), flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    return int(failed)


def _compiled(name: str, target: str, steps: int) -> tuple[Compiled, float | None]:
    """Returns a compiled workload, and how often the host starts something in a step; None for TPUs."""
    if target not in GPUS:
        return compile_workload(name, target, steps), None
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_workload(name, target, steps, Path(folder))
        [thunks] = Path(folder).glob("*jit_steps*.thunk_sequence_after_thunk_passes.txt")
        return compiled, host_starts(thunks.read_text(), steps)


def _cells(row: str, costs: StepCosts, starts: float | None, seconds: float) -> tuple[str, ...]:
    return (
        row,
        f"{costs.launches:.0f}",
        "-" if starts is None else f"{starts:.0f}",
        f"{costs.collectives:.0f}",
        f"{costs.bytes / 2**20:.0f}",
        f"{costs.flops / 1e9:.2f}",
        f"{costs.padding:.0%}",
        f"{costs.sent / 2**20:.2f}",
        f"{costs.memory / 2**30:.2f}",
        f"{seconds:.0f}",
    )


def _line(cells: Sequence[str]) -> str:
    widths = (21, 8, 11, 11, 9, 7, 7, 8, 8, 9)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.driving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", metavar="NAMES", help="the rows to compile, separated by commas (default: all)")
    parser.add_argument("--steps", type=int, default=1, metavar="K", help="steps of a dispatch (default: 1)")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all costs")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="write the HLO of each program")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
