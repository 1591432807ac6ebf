"""Runs of a sweep as jobs of a scheduler, Slurm or Kubernetes, which outlive the driver.

A job is known to the scheduler by a name that is unique to the sweep, so a driver that was killed finds it again.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from zlib import crc32

from engine.base.errors import RunError
from engine.cluster.exit_status import ExitStatus
from engine.launch.cli_args import LaunchError
from engine.run import status
from engine.sweeps import timeouts
from engine.sweeps.workers import Job


class Scheduler(Protocol):
    """What a sweep needs of a scheduler. Each method calls one command of it."""

    def submit(self, name: str, job: Job) -> None:
        """Queues a job under a name. Raises LaunchError if the scheduler refuses it."""
        ...

    def states(self, names: Collection[str]) -> Mapping[str, bool]:
        """Returns name -> whether the job is queued or running; jobs that the scheduler does not know are absent.

        Raises LaunchError if the scheduler does not answer.
        """
        ...

    def cancel(self, name: str) -> None:
        """Ends a job: its run saves first."""
        ...


@dataclass
class ClusterWorkers:
    """Executes jobs by a scheduler.

    Args:
        scheduler: the scheduler.
        folder: the folder of the sweep.
        slots: number of jobs that are queued or running at the same time.
    """

    scheduler: Scheduler
    folder: Path
    slots: int
    poll_s: float = timeouts.CLUSTER_POLL_S
    outlive_driver: bool = True
    _jobs: dict[str, Job] = field(default_factory=dict)
    _failing_since: float = 0.0

    def start(self, job: Job) -> None:
        """Submits a job, unless it is queued or running already."""
        name = self._name(job.name)
        if not self.scheduler.states([name]).get(name, False):
            self.scheduler.submit(name, job)
        self._jobs[job.name] = job

    def ended(self) -> dict[str, int]:
        """Returns name -> exit code of the jobs that have ended, from the status of their runs."""
        if not self._jobs:
            return {}
        try:
            known = self.scheduler.states([self._name(name) for name in self._jobs])
        except LaunchError:  # a scheduler that restarts does not end a sweep
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since > timeouts.SCHEDULER_S:
                raise
            return {}
        self._failing_since = 0.0
        found = {name: job for name, job in self._jobs.items() if not known.get(self._name(name), False)}
        for name in found:
            del self._jobs[name]
        return {name: _exit_code(job.run) for name, job in found.items()}

    def stop(self, name: str) -> None:
        """Cancels a job."""
        if name in self._jobs:
            self.scheduler.cancel(self._name(name))

    def close(self) -> None:
        """Does nothing: jobs outlive the driver."""

    def _name(self, job: str) -> str:
        """Returns the name of a job in the scheduler: letters, digits and "-", at most 40 characters."""
        return f"sweep-{crc32(str(self.folder.resolve()).encode()):08x}-{job}"


def _exit_code(run: Path) -> int:
    """Returns the exit code of a job that has ended; that of a killed process if the run has not written its end."""
    try:
        found = status.read(run / "status.json")
    except RunError:
        return ExitStatus.USER_ERROR
    if found.state in status.ENDED and found.exit_code is not None:
        return found.exit_code
    return ExitStatus.SIGKILL
