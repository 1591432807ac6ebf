"""Workers that write the files of a run without training, so that tests can end a driver at each of its writes.

A run has an evaluation every 10 steps, up to 30. Its result depends on its settings and seed only. `trained.txt` in the
folder of the sweep has a line for each evaluation that a run has trained to.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.base import json_text
from engine.config import load
from engine.launch.signals import Signals
from engine.run import status
from engine.sweeps.asking import Asking
from engine.sweeps.commands import Commands
from engine.sweeps.decisions import read_decision
from engine.sweeps.driver import Driver
from engine.sweeps.folder import Definition, SweepFolder
from engine.sweeps.space import Space
from engine.sweeps.sweep import open_sweep
from engine.sweeps.workers import Job, Workers

PERIOD, TOTAL = 10, 30
METRIC = "heldout/accuracy"


def definition(**changes: object) -> Definition:
    """Returns the definition of a sweep of three learning rates."""
    values: dict = dict(
        name="rates",
        reference="configs.digits",
        overrides=[],
        config={"train.total": "30 steps"},
        space={"optimizer.learning_rate": "choice(0.1, 0.2, 0.3, 0.4)"},
        metric=METRIC,
        direction="max",
        sampler="grid",
        prune="",
        rung=0,
        factor=2,
        trials=4,
        seeds=1,
        budget="",
        seed=9,  # the grid is then in ascending order
        storage="",
    )
    return Definition(**{**values, **changes})


class ScriptedWorkers:
    """Two slots; each call of `ended` takes every run to its next evaluation.

    Args:
        folder: the folder of the sweep.
        failures: learning rate -> (exit code, reason) of each start of its runs, the first one first; a run that is in
            no table succeeds.
    """

    poll_s, outlive_driver, slots = 0.0, False, 2

    def __init__(self, folder: SweepFolder, failures: Mapping[float, list[tuple[int, str]]] | None = None):
        self._folder, self._failures = folder, {rate: list(ends) for rate, ends in (failures or {}).items()}
        self._running: dict[str, Job] = {}
        self._stopped: set[str] = set()
        self.started: list[str] = []

    def start(self, job: Job) -> None:
        self._running[job.name] = job
        self.started.append(job.name)

    def ended(self) -> dict[str, int]:
        found = {name: 42 if name in self._stopped else self._advance(job) for name, job in self._running.items()}
        codes = {name: code for name, code in found.items() if code is not None}
        for name in codes:
            del self._running[name]
            self._stopped.discard(name)
        return codes

    def stop(self, name: str) -> None:
        self._stopped.add(name)

    def close(self) -> None:
        self._running.clear()

    def _advance(self, job: Job) -> int | None:
        rate, seed = _setting(job, "optimizer.learning_rate", 0.0), _setting(job, "train.seed", 0.0)
        checkpoints = job.run / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        results = _read(checkpoints / "results.json")
        if self._failures.get(rate):
            code, reason = self._failures[rate].pop(0)
            _write_status(job, "failed", max(map(int, results), default=0), {}, reason, code)
            return code
        step = max(map(int, results), default=0)
        decisions = [text.partition("=")[2] for text in job.words if text.startswith("--config.hooks.sweep.decisions=")]
        if step and decisions:
            decided, prune = read_decision(Path(decisions[0]))
            if prune:
                _write_status(job, "done", step, results[str(step)], "", 0)
                return 0
            if decided < step:
                return None
        if step < TOTAL:
            step += PERIOD
            with open(self._folder.path / "trained.txt", "a") as file:
                file.write(f"{job.name} {step}\n")
            results[str(step)] = {METRIC: accuracy(rate, seed, step)}
            (checkpoints / "results.json").write_text(json_text.dumps(results))
        if step < TOTAL:
            return None
        _write_status(job, "done", step, results[str(step)], "", 0)
        return 0


def drive(
    path: Path,
    definition: Definition,
    make_workers: Callable[[SweepFolder], Workers] | None = None,
    signals: Signals | None = None,
) -> list[str]:
    """Runs or continues a sweep with scripted runs; returns the sentences for the user."""
    folder, said = SweepFolder(path), []
    with open_sweep(folder, definition) as (study, _):
        asking = Asking(definition, Space.parse(None, definition.space), study, parallel=True)
        commands = Commands(definition, folder, load(definition.reference))
        workers = (make_workers or ScriptedWorkers)(folder)
        Driver(folder, definition, study, asking, commands, workers, said.append).run(signals or Signals())
    return said


def accuracy(rate: float, seed: float, step: int) -> float:
    """Returns the result of an evaluation."""
    return round(rate + 0.01 * seed + 0.001 * step, 6)


def trained(folder: SweepFolder) -> list[str]:
    """Returns the evaluations that runs have trained to, in order."""
    return (folder.path / "trained.txt").read_text().splitlines()


def end_at_write(number: int) -> None:
    """Lets this process end, as if killed, at its n-th write that is synced to the disk, which is left half done."""
    left, sync = [number], os.fsync

    def write(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, max(0, size - 7))
            os._exit(137)
        sync(descriptor)

    os.fsync = write


def _setting(job: Job, name: str, otherwise: float) -> float:
    found = [re.fullmatch(rf"--config\.{re.escape(name)}=(.+)", word) for word in job.words]
    return next((float(match[1]) for match in found if match), otherwise)


def _read(path: Path) -> dict[str, dict[str, float]]:
    return json_text.read(path) if path.exists() else {}


def _write_status(job: Job, state: str, step: int, metrics: Mapping[str, float], reason: str, code: int) -> None:
    found = status.Status(state=state, step=step, total_steps=TOTAL, reason=reason, exit_code=code, metrics=metrics)
    status.write(job.run / "status.json", found)
