"""Slurm as the scheduler of a sweep: each run is a job of `convoy launch slurm`, which requeues itself."""

import dataclasses
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.launch.cli_args import LaunchError
from engine.launch.slurm import SlurmJob
from engine.sweeps.workers import Job

TIMEOUT_S = 60.0  # for a command of Slurm
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


@dataclass(frozen=True)
class SlurmScheduler:
    """Slurm's commands.

    Args:
        template: a job with the nodes, the time limit and other options of each run.
    """

    template: SlurmJob

    def submit(self, name: str, job: Job) -> None:
        """Submits the batch script of a run."""
        script = dataclasses.replace(self.template, name=name, command=job.words).script()
        Path(self.template.logs).mkdir(parents=True, exist_ok=True)  # Slurm creates no folder
        _run("sbatch", text=script)

    def states(self, names: Collection[str]) -> Mapping[str, bool]:
        """Returns name -> whether the newest job of that name is queued or running."""
        listed = _run("squeue", "--me", "--noheader", "--states=all", f"--name={','.join(names)}", "--format=%j %i %T")
        found: dict[str, tuple[int, bool]] = {}
        for line in listed.splitlines():
            name, number, state = line.split()
            found[name] = max(found.get(name, (-1, False)), (int(number), state not in _ENDED))
        return {name: running for name, (_, running) in found.items()}

    def cancel(self, name: str) -> None:
        """Cancels the jobs of a name: Slurm sends SIGTERM, and SIGKILL later."""
        _run("scancel", "--me", f"--name={name}")


def _run(*words: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise LaunchError(f"{words[0]}: not installed on this machine. Start it on a node with Slurm.") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{words[0]} has not answered in {TIMEOUT_S:.0f} s. The same command continues.") from error
    if done.returncode:
        raise LaunchError(f"{words[0]} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
