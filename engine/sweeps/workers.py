"""Where the runs of a sweep are executed: the protocol of this machine, Slurm, Kubernetes and Ray.

The driver of a sweep is the only process that starts runs and that writes to Optuna's storage. A run reports through
its run directory, which the driver must be able to read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """A run to execute. The same job may be started again after its end: it resumes from its checkpoint."""

    name: str
    """A name that is unique in the sweep and valid as a file name, such as "trial-0003"."""
    words: Sequence[str]
    """The words after `convoy`, such as ["train", "--config=configs.digits", "--workdir=..."]."""
    run: Path
    """Its run directory."""


class Workers(Protocol):
    """Executes jobs. All methods are called by one thread of the driver and return soon."""

    poll_s: float
    """Seconds between two polls of the runs by the driver."""
    outlive_driver: bool
    """Whether jobs continue after the driver has ended."""

    @property
    def slots(self) -> int:
        """Number of jobs that may run at the same time."""
        ...

    def start(self, job: Job) -> None:
        """Starts a job, or finds it again if it still runs from an earlier, killed driver."""
        ...

    def ended(self) -> dict[str, int]:
        """Returns name -> exit code, as a shell reports it, of the jobs that have ended since the last call."""
        ...

    def stop(self, name: str) -> None:
        """Asks a running job to save and end (SIGTERM). It is returned by `ended` once it has."""
        ...

    def close(self) -> None:
        """Ends what must not outlive the driver: on this machine all jobs, on a cluster only connections."""
        ...
