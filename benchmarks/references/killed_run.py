"""Trains a config twice, in processes of their own: without a break, and killed at given steps and started again.

The hook `Kill` of the config ends its process by SIGKILL, so that nothing is saved or cleaned up. A run that is started
again continues from its last complete checkpoint.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcome import outcome, saved
from benchmarks.references.rows import Row
from engine.base.errors import RunError
from engine.cluster.exit_status import ExitStatus

type Run = Callable[[list[str], dict[str, str]], subprocess.CompletedProcess[str]]
"""Runs a program to its end, given its words and its environment."""
KILLS = "CONVOY_BENCHMARK_KILLS"
"""Variable with a folder that has a file for each kill that is still to come, named after its step."""
HOOK = dict(target=f"{__name__}.Kill", every="1 step")
"""The hook, as an entry of `hooks` in the config."""
WAIT_S = 120.0
"""Longest wait for a save."""
WHOLE, KILLED = "whole", "killed"
"""Folders of the two runs."""


class Kill:
    """A hook that ends its process by SIGKILL after each step that has a file in the folder of `KILLS`.

    It first waits until a save of this process is complete, so that the next process resumes from it.
    """

    def __init__(self):
        self._earlier: list[int] | None = None  # steps that earlier processes have saved

    def run(self, trainer: Any, state: Any, step: int) -> None:
        """Removes the file of the step, if there is one, and ends the process.

        Raises:
            RunError: the run has not continued from the newest save, or a save does not end.
        """
        folder = trainer.directory.path
        if self._earlier is None:
            self._earlier = saved(folder)
            if not 0 <= step - max(self._earlier, default=0) <= 1:
                raise RunError(f"{folder}: saved are the steps {self._earlier}, and the run continues before {step}.")
        file = Path(os.environ[KILLS]) / str(step)
        if not file.exists():
            return
        deadline = time.monotonic() + WAIT_S
        while max(saved(folder), default=0) <= max(self._earlier, default=0):
            if time.monotonic() > deadline:
                raise RunError(f"{folder}: no save was complete {WAIT_S:.0f} s after step {step}.")
            time.sleep(0.01)
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def run_program(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end in an environment."""
    return subprocess.run(words, env=env, capture_output=True, text=True)


def compare(
    item: str, arguments: Sequence[str], folder: Path, kills: Sequence[int], run: Run = run_program
) -> Iterator[Row]:
    """Yields the rows of the numbers that differ between the runs; 0 means equal bits.

    Args:
        item: name of the rows.
        arguments: of `convoy train`. The config has the hook, a row of metrics for each step, and `log.examples`.
        folder: gets the runs `whole` and `killed`.
        kills: steps after which the second run is killed, in rising order.
        run: runs a program to its end, as `run_program`.

    Raises:
        RunError: a run fails, or is not killed where it should be.
    """
    train(arguments, folder / WHOLE, (), run)
    train(arguments, folder / KILLED, kills, run)
    found, wanted = outcome(folder / KILLED), outcome(folder / WHOLE)
    at = " and ".join(map(str, kills))
    for name in ("losses", "state", "examples"):
        one, other = getattr(found, name), getattr(wanted, name)
        what = {"losses": "losses", "state": "arrays of the last state", "examples": "batches"}[name]
        yield Row(f"{item}, {what}, killed at steps {at}", len(other), _differing(one, other))


def train(arguments: Sequence[str], workdir: Path, kills: Sequence[int], run: Run = run_program) -> None:
    """Trains to the end, in one process more than there are kills. Raises RunError if a process ends otherwise."""
    folder = workdir.with_name(f"{workdir.name}-kills")
    folder.mkdir(parents=True)
    for step in kills:
        (folder / str(step)).touch()
    for left in reversed(range(len(kills) + 1)):
        done = run(_words("train", f"--workdir={workdir}", *arguments), _environment() | {KILLS: str(folder)})
        wanted = (ExitStatus.SIGKILL, left - 1) if left else (ExitStatus.DONE, 0)
        if (found := (done.returncode, len(list(folder.iterdir())))) != wanted:
            expected = tuple(map(int, wanted))
            raise RunError(
                f"{workdir}: (exit code, kills to come) = {found}. Expected: {expected}. Output:\n{_end(done)}"
            )


def convoy(*arguments: str) -> None:
    """Runs the command line. Raises RunError if it fails."""
    done = run_program(_words(*arguments), _environment())
    if done.returncode != ExitStatus.DONE:
        raise RunError(f"convoy {' '.join(arguments)}: ended with {done.returncode}:\n{_end(done)}")


def _words(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "engine.cli.main", *arguments]


def _environment() -> dict[str, str]:
    # JAX_NUM_CPU_DEVICES would count more than `mesh.cpu_devices` of the config.
    own = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return own | {"JAX_PLATFORMS": "cpu"}


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the last lines of the output."""
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])


def _differing(found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> int:
    return sum(found.get(key) != wanted.get(key) for key in {*found, *wanted})
