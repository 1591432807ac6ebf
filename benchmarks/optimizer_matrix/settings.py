"""Other settings of a run with each optimizer: what they compute, or the sentence with which they are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import engine
from benchmarks.optimizer_matrix.meshes import SHAKE, STEPS, Arrays, error, loss_error, trained
from benchmarks.optimizer_matrix.subjects import MESHES, SETTINGS, config
from engine.api.prepared import program
from engine.api.saved_run import SavedRun
from engine.base.errors import ConvoyError

EXACT = 1e-4
"""Largest error of the changes of parameters where rounding alone differs; see `verdict`."""
LARGER = 10
"""Or so many times what a relative change of the first parameters by `SHAKE` does on one device."""
AVERAGES = 1e-6
"""Largest error of averages, which are not changes."""
HALF = 0.05
"""Largest error of the losses in bfloat16."""


def with_setting(optimizer: str, setting: str) -> str:
    """Returns "equal", what differs, or the sentence of the refusal.

    - accumulation, K steps: the parameters of a run without the setting;
    - EMA: the same, and the averages of its parameters, computed in float64;
    - LoRA: one device and the mesh `fsdp`; bf16: the losses of both.
    """
    try:
        return _CHECKS[setting](optimizer)
    except ConvoyError as refusal:
        return str(refusal)


def verdict(found: float, shaken: float) -> str:
    """Returns "equal" for an error that rounding explains, or else the error."""
    return "equal" if found <= max(EXACT, LARGER * shaken) else f"differs by {found:.1g}, rounding by {shaken:.1g}"


def shaken_error(optimizer: str, experts: bool = False) -> float:
    """Returns the error of a run on one device whose first parameters are changed by `SHAKE`."""
    return error(trained(optimizer, None, experts).changes, trained(optimizer, None, experts, SHAKE).changes)[0]


def _accumulation(optimizer: str) -> str:
    wanted, found = trained(optimizer, None), trained(optimizer, None, setting="accumulation")
    return verdict(error(wanted.changes, found.changes)[0], shaken_error(optimizer))


def _k_steps(optimizer: str) -> str:
    wanted, found = trained(optimizer, None), trained(optimizer, None, k=STEPS)
    return verdict(error(wanted.changes, found.changes)[0], shaken_error(optimizer))


def _averages(optimizer: str) -> str:
    wanted, found = trained(optimizer, None), trained(optimizer, None, setting="EMA")
    average: Arrays = {path: np.asarray(x, np.float64) for path, x in found.params[0].items()}
    for params in found.params[1:]:
        average = {path: 0.9 * x + 0.1 * params[path] for path, x in average.items()}
    assert found.averages is not None
    if (rounding := error(average, found.averages)[0]) > AVERAGES:
        return f"averages differ by {rounding:.1g}"
    return verdict(error(wanted.changes, found.changes)[0], shaken_error(optimizer))


def _adapters(optimizer: str) -> str:
    wanted, found = (trained(optimizer, mesh, setting="LoRA") for mesh in (None, "fsdp"))
    moved = {path: x for path, x in wanted.changes.items() if np.abs(x).max() > 0}
    if any("lora" not in path for path in moved):
        return f"changes {next(path for path in moved if 'lora' not in path)}"
    return verdict(error(moved, {path: found.changes[path] for path in moved})[0], shaken_error(optimizer))


def _half(optimizer: str) -> str:
    wanted, found = (trained(optimizer, mesh, setting="bf16") for mesh in (None, "fsdp"))
    largest = loss_error(wanted, found)
    return "equal" if largest <= HALF else f"losses differ by {largest:.1g}"


_CHECKS: dict[str, Callable[[str], str]] = {
    "accumulation": _accumulation,
    "EMA": _averages,
    "LoRA": _adapters,
    "bf16": _half,
    "K steps": _k_steps,
}
assert _CHECKS.keys() == SETTINGS.keys()


def resumed(optimizer: str, folder: Path) -> str:
    """Returns "equal" if a run of 2 steps, a save, a restore and 2 more steps has the bits of one of 4 steps.

    Args:
        optimizer: a key of OPTIMIZERS.
        folder: where the run directories are created. The mesh is `fsdp`.
    """
    settings = {**MESHES["fsdp"], "train.total": "4 steps", "checkpoint.every": "2 steps", "log.every": "1 step"}
    c = config(optimizer, settings=settings)
    whole, run = folder / "whole", folder / "run"
    engine.train(c, workdir=whole)
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints/4")
    (run / "metrics.jsonl").unlink()
    (run / "checkpoints/results.json").unlink(missing_ok=True)
    engine.train(c, workdir=run)
    like = program(c)[0]
    wanted, found = (jax.device_get(SavedRun(each).restore(4, like)) for each in (whole, run))
    different = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(found), strict=True)
        if not np.array_equal(x, y, equal_nan=True)
    ]
    return f"differs: {', '.join(different[:3])}" if different else "equal"
