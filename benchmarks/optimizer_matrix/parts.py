"""The parts of the table: functions of an optimizer and of an empty folder, whose results are JSON."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.optimizer_matrix import meshes, settings
from benchmarks.optimizer_matrix.subjects import MESHES, SETTINGS, WIDE, built, has_experts
from benchmarks.references import optimizers as references
from engine.base.errors import ConvoyError
from engine.parallel.memory import device_bytes

GOLDEN = Path(__file__).parents[2] / "tests" / "optimizers" / "golden" / "optimizers"
ROUNDS = 5


def reference(optimizer: str, folder: Path) -> float | None:
    """Returns the error against the outside optimizer; None without golden files."""
    if optimizer not in references.ITEMS or not GOLDEN.is_dir():
        return None
    [row] = references.compared(GOLDEN, optimizer)
    return row.largest_difference


def updates(optimizer: str, folder: Path) -> dict[str, float]:
    """Returns mesh -> error of updates with given gradients."""
    return {mesh: _update_error(optimizer, mesh) for mesh in MESHES}


def _update_error(optimizer: str, mesh: str) -> float:
    wanted = meshes.updated(optimizer, None, has_experts(mesh))
    return meshes.error(wanted.changes, meshes.updated(optimizer, mesh).changes)[0]


def steps(optimizer: str, folder: Path) -> dict[str, Any]:
    """Returns mesh -> larger one of the errors of parameters and losses; "shaken" has those of one device."""
    found: dict[str, Any] = {}
    for mesh in MESHES:
        wanted, there = meshes.trained(optimizer, None, has_experts(mesh)), meshes.trained(optimizer, mesh)
        found[mesh] = max(meshes.error(wanted.changes, there.changes)[0], meshes.loss_error(wanted, there))
    names = {"dense": False, "experts": True}
    found["shaken"] = {name: settings.shaken_error(optimizer, experts) for name, experts in names.items()}
    return found


def resume(optimizer: str, folder: Path) -> str:
    """Returns whether a resumed run has the same bits."""
    return settings.resumed(optimizer, folder)


def other_settings(optimizer: str, folder: Path) -> dict[str, str]:
    """Returns setting -> "equal", or what else."""
    return {setting: settings.with_setting(optimizer, setting) for setting in SETTINGS}


def state_bytes(optimizer: str, folder: Path) -> dict[str, float | str]:
    """Returns mesh -> bytes of the optimizer state of a device over those of its parameters."""
    found: dict[str, float | str] = {}
    for mesh in MESHES:
        try:
            state = built(optimizer, mesh).abstract_state
        except ConvoyError as refusal:
            found[mesh] = str(refusal)
            continue
        parts = [sum(map(device_bytes, jax.tree.leaves(part))) for part in (state.opt_state, state.params)]
        found[mesh] = round(parts[0] / parts[1], 3)
    return found


def update_time(optimizer: str, folder: Path) -> float:
    """Returns the time of an update over that of AdamW, in turns, on one device."""
    runs = {name: meshes.Updates(name, None, setting=WIDE) for name in dict.fromkeys((optimizer, "adamw"))}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run.step()  # compiles
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(10):  # a period of SOAP's decompositions
                run.step()
            jax.block_until_ready(run.params)
            seconds[name].append(time.perf_counter() - start)
    return statistics.median(seconds[optimizer]) / statistics.median(seconds["adamw"])


def compiled(optimizer: str, folder: Path) -> Mapping[str, Any] | None:
    """Returns target -> costs of the update; None for an optimizer that is not compiled."""
    from benchmarks.optimizer_matrix import targets

    return targets.measured(optimizer) if optimizer in targets.COMPILED else None


PARTS: Mapping[str, Callable[[str, Path], Any]] = {
    "reference": reference,
    "bytes": state_bytes,
    "updates": updates,
    "resume": resume,
    "settings": other_settings,
    "steps": steps,
    "time": update_time,
    "compiled": compiled,
}
"""Name -> function."""
