"""The folder of a sweep: its definition, which a restart must repeat, its storage and the runs of its trials."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import ConfigError, RunError
from engine.base.files import lock_if_supported
from engine.run.atomic import write_text
from engine.storage.mounts import is_address, local_path
from engine.sweeps.workers import Job

DEFINITION, JOURNAL, LOCK = "sweep.json", "journal.log", "lock"
_FORMAT = 1
WITHOUT_EFFECT = ("log.", "cache.", "profile.", "tiny.")  # settings that change no result
_MAY_CHANGE = ("trials", "reference", "overrides")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a sweep searches, and how. `sweep.json` holds it."""

    name: str
    """Name of the study in Optuna's storage."""
    reference: str
    """The config: a file, a module or a run directory."""
    overrides: list[str]
    """Overrides of the config, each "train.total=2 epochs"."""
    config: dict[str, str]
    """Every setting of the base config as text."""
    space: dict[str, str]
    """Setting -> text of its domain."""
    metric: str
    direction: str
    """"max" or "min"."""
    sampler: str
    prune: str
    """One of `study.PRUNERS`, or "" for none."""
    rung: int
    """First step at which a trial may be pruned; 0 for that of the first evaluation."""
    factor: int
    """Reduction factor of halving."""
    trials: int
    """Number of trials."""
    seeds: int
    """Runs of each trial, with different seeds."""
    budget: str
    """Budget of each run, such as "2000 steps"; "" for `train.total`."""
    seed: int
    """Seed of the sampler."""
    storage: str
    """URL of Optuna's storage; "" for the journal in the folder."""

    def differences(self, other: "Definition") -> list[str]:
        """Returns what differs in another definition, in sentences without an end; the number of trials may."""
        found = []
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name in _MAY_CHANGE or mine == theirs:
                continue
            if isinstance(mine, dict):
                found += _changes(field.name, mine, theirs)
            else:
                found.append(f"{field.name} was {mine!r} and is {theirs!r}")
        return found


def _changes(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Returns the changed entries of a table of settings."""
    found = []
    for key in dict.fromkeys([*before, *after]):
        if key.startswith(WITHOUT_EFFECT) or before.get(key) == after.get(key):
            continue
        was, now = (f"{table[key]}" if key in table else "absent" for table in (before, after))
        found.append(f"{name}: {key} was {was} and is {now}")
    return found


class SweepFolder:
    """The files of a sweep below `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def definition(self) -> Path:
        """The file of the definition."""
        return self.path / DEFINITION

    @property
    def journal(self) -> Path:
        """Optuna's journal, if no database is given."""
        return self.path / JOURNAL

    @property
    def logs(self) -> Path:
        """Folder of the output of the runs."""
        return self.path / "logs"

    def exists(self) -> bool:
        """Whether a sweep was started here."""
        return self.definition.exists()

    def storage(self, definition: Definition) -> str:
        """Returns where Optuna stores the study: a URL or the path of the journal."""
        return definition.storage or str(self.journal)

    def job_name(self, trial: int, seed: int, seeds: int) -> str:
        """Returns the name of a job: "trial-0003", or "trial-0003-seed-1"."""
        return f"trial-{trial:04}" + (f"-seed-{seed}" if seeds > 1 else "")

    def run(self, trial: int, seed: int, seeds: int) -> Path:
        """Returns the run directory of a trial and a seed."""
        folder = self.path / "trials" / f"{trial:04}"
        return folder / f"seed-{seed}" if seeds > 1 else folder

    def decision(self, job: Job) -> Path:
        """Returns the file with the decisions of the driver about a job."""
        return self.path / "decisions" / f"{job.name}.json"

    def clock(self, job: Job) -> Path:
        """Returns the file with the time that a job has used."""
        return self.path / "decisions" / f"{job.name}.clock"

    def read(self) -> Definition:
        """Returns the stored definition.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        try:
            stored: dict[str, Any] = json_text.read(self.definition)
            if stored.pop("format", None) != _FORMAT:
                raise ValueError("another format")
            return Definition(**stored)
        except FileNotFoundError as error:
            raise RunError(f"{self.path}: holds no sweep ({DEFINITION} is missing). Check the folder.") from error
        except OSError as error:
            raise RunError(f"{self.definition}: cannot be read ({error.strerror}).") from error
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.definition}: is not the definition of a sweep ({error}).") from error

    def agree(self, definition: Definition) -> bool:
        """Stores the definition of a new sweep, or checks that it is that of the sweep here.

        Returns:
            Whether the sweep continues.

        Raises:
            ConfigError: the sweep here has another definition.
        """
        before = self.read() if self.exists() else None
        if before is not None and not before.storage:  # a folder that was moved
            definition = dataclasses.replace(definition, name=before.name)
        if before is not None and (found := before.differences(definition)):
            shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
            raise ConfigError(
                f"{self.path}: is a sweep with another definition: {shown}. Use the same to continue it, or another "
                "--workdir to start a new sweep."
            )
        if before != definition:
            self.path.mkdir(parents=True, exist_ok=True)
            stored = {"format": _FORMAT, **dataclasses.asdict(definition)}
            write_text(self.definition, json_text.dumps(stored, indent=1) + "\n")
        return before is not None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lets no other driver work on this sweep for the block.

        Raises:
            ConfigError: another driver does.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "ab")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}). Choose another --workdir."
            ) from error
        with file:
            if not lock_if_supported(file, wait=False):
                raise ConfigError(
                    f"{self.path}: another process works on this sweep. `convoy sweep status {self.path}` shows its "
                    "progress."
                )
            yield


def open_folder(path: str | Path) -> SweepFolder:
    """Returns the folder of a sweep at a path. Raises ConfigError for the address of a bucket."""
    if is_address(path):
        raise ConfigError(
            f"--workdir={path}: a sweep needs a folder that its runs share, not a bucket. Mount the bucket."
        )
    return SweepFolder(local_path(path))
