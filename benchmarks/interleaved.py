"""Loops that run in turns, so that other load on the machine falls on each of them alike.

`EngineLoop` drives the engine's real loop by iterating over its boundaries. The rest times turns and formats ratios.
"""

import contextlib
import dataclasses
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.duration import Duration
from engine.config.schema import Config, Hook
from engine.config.target import build
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from engine.trainer import Trainer
from engine.training.state import TrainState


class EngineLoop:
    """The engine's loop over a config, `steps` steps a turn. A context manager: its exit ends the run.

    Args:
        config: of a run of `turns(n)` steps or more; the first turn, which compiles, is taken on entry.
        steps: of one turn.
    """

    def __init__(self, config: Config, steps: int):
        self._config = dataclasses.replace(config, hooks={"turn": Hook(every=Duration(steps, "steps"))})
        self._steps, self._step = steps, 0
        self.rows: list[dict[str, Any]] = []
        """The rows of metrics so far."""

    def __enter__(self) -> "EngineLoop":
        with contextlib.ExitStack() as stack:
            self._boundaries = stack.enter_context(contextlib.closing(self._trainer(stack).train()))
            self.turn()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _trainer(self, stack: contextlib.ExitStack) -> Trainer:
        config = self._config
        path = stack.enter_context(tempfile.TemporaryDirectory(prefix="convoy-benchmark-"))
        return Trainer(
            build(config.task, "task"),
            make_mesh(config.mesh),
            build(config.data, "data"),
            config,
            stack.enter_context(RunDirectory.open(Path(path) / "run")),
            evaluation_sources={},
            hooks={"turn": self},
            on_row=self.rows.append,
            on_message=lambda text: None,
        )

    def turn(self) -> None:
        """Trains for `steps` steps and waits for the device, as the loop does before it calls a hook."""
        self._step += self._steps
        for boundary in self._boundaries:
            if boundary.step == self._step:
                return

    def run(self, trainer: Trainer, state: TrainState, step: int) -> None:
        """The hook that makes a boundary of each turn's end."""


def total(steps: int, turns: int) -> int:
    """Steps of a run of so many turns, with the one that compiles, and one that is never taken."""
    return steps * (turns + 2)


def interleave(loops: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Returns seconds of each turn by name of the loop; every second round is in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(turns):
        for name in list(loops) if i % 2 == 0 else reversed(list(loops)):
            begin = time.perf_counter()
            loops[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least-most)."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def machine() -> str:
    """One line: CPU model, cores, load, releases."""
    import jax

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return (
        f"{model}, {cores} cores, load {os.getloadavg()[0]:.1f}; jax {jax.__version__}, "
        f"{jax.device_count()} device(s): {devices}; Python {platform.python_version()}"
    )
