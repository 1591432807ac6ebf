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

from benchmarks.aot.modelled_time import ModelledTime, modelled_time
from benchmarks.aot.programs import Compiled
from benchmarks.aot.small import StepCosts, host_starts, step_costs
from engine.api.prepared import program
from engine.config import hardware
from engine.config.override import assign
from engine.parallel.memory import device_bytes
from engine.parallel.targets import devices

TARGETS: Mapping[str, tuple[str, int]] = {"v5e": ("v5e:4x4", 16), "h100": ("h100:1x8", 8)}
"""Name in a row -> target, and its devices."""
GPUS = ("h100",)
STAND_INS = "benchmarks.aot.stand_ins"
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
    "ms",
    "outside",
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


def _data(name: str, **arguments: Any) -> dict[str, Any]:
    return {"data": {"target": f"{STAND_INS}.{name}", **arguments}}


_SWEEPS = {**_data("Sweeps"), "task.width": 64, "task.cells": [256, 256], "task.capacity": 60_000}
_FRAMES = {
    "task.lower": [0.0, -40.0, -3.0],
    "task.upper": [70.4, 40.0, 1.0],
    "task.cells": [176, 200],
    "task.width": 64,
    "task.capacity": 16_000,
}
_IMAGES = {
    "task.width": 128,
    "task.cells": [128, 128],
    "task.lower": [-51.2, -51.2, -3.0],
    "task.upper": [51.2, 51.2, 5.0],
    "task.strides": [[4, 4], [2, 2], [2, 2]],
}
_MOTION = {"task.width": 128, "task.encoder": 4, "task.decoder": 4}
_ARGOVERSE = _data("Motion", targets=4, agents=48, lines=256, history=10, future=60)
_WAYMO = _data("Motion", targets=8, agents=64, lines=256, history=11, future=80)
WORKLOADS: Mapping[str, Workload] = {
    "lidar_sim": Workload("configs.lidar_sim", 4),
    "bev_sim": Workload("configs.bev_sim", 2),
    "fusion_sim": Workload("configs.fusion_sim", 2, {"init.sources": {}}),
    "forecast_sim": Workload("configs.forecast_sim", 32, _data("Agents")),
    "motion_tokens": Workload(
        "configs.motion_tokens", 8, {**_data("TokenScenes"), "task.target": f"{STAND_INS}.Tokens"}
    ),
    "forecast_eth_ucy": Workload("configs.forecast_eth_ucy", 8, _data("PackedScenes")),
    "nuscenes_lidar": Workload("configs.nuscenes_lidar", 2, _SWEEPS),
    "nuscenes_voxels": Workload("configs.nuscenes_lidar", 2, {**_SWEEPS, "task.voxels": 16}),
    "nuscenes_cameras": Workload("configs.nuscenes_cameras", 2, {**_data("Images"), **_IMAGES}),
    "nuscenes_cameras_memory": Workload("configs.nuscenes_cameras_memory", 2, {**_data("drives", length=2), **_IMAGES}),
    "argoverse2_motion": Workload("configs.argoverse2_motion", 4, {**_ARGOVERSE, **_MOTION}),
    "waymo_motion": Workload("configs.waymo_motion", 4, {**_WAYMO, **_MOTION}),
    "kitti_lidar": Workload("configs.kitti_lidar", 2, {**_data("Frames"), **_FRAMES}),
}
"""Name -> workload. The rows of a device are those that its config trains with on one."""


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
    if "rows" in c.task:
        c.task.rows = c.train.global_batch_size
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
    failed = False
    for row in names:
        target, _, name = row.partition("-")
        try:
            measured = _measured(name, target, args.steps, args.hlo)
        except Exception as error:
            failed = True
            print(f"{row}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        print(_line(_cells(row, measured)), flush=True)
        if args.json:
            known = json.loads(args.json.read_text()) if args.json.exists() else {}
            args.json.write_text(json.dumps({**known, row: dataclasses.asdict(measured)}, indent=1))
    return int(failed)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of a compiled workload: costs and time of a step, and the CPU seconds of its compilation.

    `host_starts` is how often the host starts something in a step; None for TPUs.
    """

    costs: StepCosts
    time: ModelledTime
    host_starts: float | None
    parameters: int
    compile_s: float


def _measured(name: str, target: str, steps: int, hlo: Path | None) -> Measured:
    """Compiles a workload, writes its HLO to the folder `hlo` unless that is None, and returns what is known of it."""
    start = time.process_time()
    compiled, starts = _compiled(name, target, steps)
    seconds = time.process_time() - start
    text = str(compiled.executable.as_text())
    if hlo:
        hlo.mkdir(parents=True, exist_ok=True)
        (hlo / f"{target}-{name}.txt").write_text(text)
    costs, device = step_costs(compiled.executable, compiled.mesh, steps), hardware.find(compiled.kind)
    assert device is not None
    modelled = modelled_time(text, compiled.mesh, device, steps)
    return Measured(costs, modelled, starts, compiled.parameters, seconds)


def _compiled(name: str, target: str, steps: int) -> tuple[Compiled, float | None]:
    """Returns a compiled workload, and how often the host starts something in a step; None for TPUs."""
    if target not in GPUS:
        return compile_workload(name, target, steps), None
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_workload(name, target, steps, Path(folder))
        [thunks] = Path(folder).glob("*jit_steps*.thunk_sequence_after_thunk_passes.txt")
        return compiled, host_starts(thunks.read_text(), steps)


def _cells(row: str, measured: Measured) -> tuple[str, ...]:
    costs, starts = measured.costs, measured.host_starts
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
        f"{1e3 * measured.time.total:.2f}",
        f"{measured.time.outside:.0%}",
        f"{measured.compile_s:.0f}",
    )


def _line(cells: Sequence[str]) -> str:
    widths = (29, 8, 11, 11, 9, 8, 7, 8, 8, 7, 7, 9)
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all costs to a file")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="write the HLO of each program")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
