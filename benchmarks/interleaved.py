"""Loops that run in turns, so that other load on the machine affects each of them equally.

`EngineLoop` drives the engine's real loop by iterating over its boundaries; `interleave` times the turns.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import progress
from engine.base.duration import Duration
from engine.base.types import Device
from engine.config.schema import Config, Hook
from engine.config.target import build
from engine.config.text import to_text
from engine.data.source_adapter import indexed
from engine.loop.trainer import Trainer
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from engine.training.state import TrainState
from engine.training.task import for_sources


class EngineLoop:
    """The engine's loop over a config, `steps` steps a turn. A context manager: its exit ends the run.

    Args:
        config: config of a run of at least `total_steps(steps, turns)` steps. The first turn compiles, on entry.
        steps: steps of one turn.
        devices: those of the mesh; None: all devices of JAX.
    """

    def __init__(self, config: Config, steps: int, devices: Sequence[Device] | None = None):
        self._config = dataclasses.replace(config, hooks={"turn": Hook(every=Duration(steps, "steps"))})
        self._steps = steps
        self._devices = devices
        self.step = 0
        """Steps done so far."""
        self.rows: list[dict[str, Any]] = []
        """Rows of metrics so far; the writer's thread appends them."""

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
        directory = stack.enter_context(RunDirectory.open(Path(path) / "run"))
        directory.write_config_text(to_text(config))
        source = build(config.data, "data")
        return Trainer(
            for_sources(build(config.task, "task"), {"data": indexed(source, "data")}),
            make_mesh(config.mesh, self._devices),
            source,
            config,
            directory,
            evaluation_sources={},
            hooks={"turn": self},
            on_row=self.rows.append,
            on_message=lambda text: None,
        )

    def turn(self) -> None:
        """Trains for `steps` steps and waits for the device, as the loop does before it calls a hook."""
        self.step += self._steps
        for boundary in self._boundaries:
            if boundary.step == self.step:
                return

    def run(self, trainer: Trainer, state: TrainState, step: int) -> None:
        """The hook that makes a boundary of each turn's end."""

    def losses(self) -> dict[int, float]:
        """Returns step -> loss of each logged step, after the exit of this context."""
        return {row["step"]: row["loss"] for row in self.rows if "loss" in row}


def total_steps(steps: int, turns: int) -> int:
    """Returns the length of a run of so many turns, one that compiles, and one that never runs.

    The last one keeps the end of the run, its evaluation and its save, out of the measured turns.
    """
    return steps * (turns + 2)


def interleave(loops: Mapping[str, Callable[[], Any]], turns: int, title: str = "") -> dict[str, list[float]]:
    """Runs each loop once in each round and returns the seconds of its turns by name.

    Every second round runs in reverse order.

    Args:
        loops: what runs one turn, by name.
        turns: turns of each loop.
        title: what the progress line names.
    """
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(turns):
        progress(f"{title}: turn {i + 1} of {turns}")
        for name in list(loops) if i % 2 == 0 else reversed(list(loops)):
            begin = time.perf_counter()
            loops[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds
