"""The newest checkpoint that is good, for a run that goes on: those that are not are set aside, and told.

Owns: the choice, the name under which a damaged step stays, and the end of a run that has no good step left. Does not
own: the verdict on one step (`verification.py`), reading it (`store.py`).

Terms. *Set aside*: renamed to `<step>.bad`, with `damage.txt` in it, which says what was found. It counts no more and
is never deleted; renamed back it is checked again.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.store import LOOK_S, CheckpointStore
from engine.checkpoint.verification import DamagedCheckpoint, in_short
from engine.cluster import group, processes
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import CheckpointError
from engine.run import storage
from engine.run.atomic import write_text

BAD = ".bad"
DAMAGE = "damage.txt"


class NoUsableCheckpoint(CheckpointError):
    """Every checkpoint of the run is damaged; to start from the beginning is the user's decision."""

    exit_code = ExitStatus.STOP
    everywhere = True


def restore_latest(
    store: CheckpointStore,
    abstract_state: Any,
    stacked: Mapping[str, int] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Any, int] | None:
    """Returns the state and the step of the newest good checkpoint, or None where there never was one.

    Each one that is found damaged is set aside. All processes call this, and get the same.

    Args:
        store: opened for writing.
        abstract_state, stacked: as for `CheckpointStore.restore`.
        say: is told of each damaged step.

    Raises:
        NoUsableCheckpoint: there are checkpoints, and none is good.
        CheckpointError: one cannot be read for a reason of the disk, or it is of another model.
    """
    for step in group.broadcast(store.candidates(), "the list of checkpoints"):
        try:
            return store.restore(step, abstract_state, stacked), step
        except DamagedCheckpoint as damaged:
            name = _set_aside(store.directory / str(step), damaged.problems)
            say(
                f"warning: the checkpoint of step {step} is damaged and set aside as {store.directory / name}: "
                f"{in_short(damaged.problems)}"
            )
    if bad := group.broadcast(list_set_aside(store.directory), "the list of damaged checkpoints"):
        raise NoUsableCheckpoint(
            f"{store.directory}: no checkpoint can be used:\n"
            + "".join(f"  {name}: {why}\n" for name, why in bad)
            + "Bring one of them back from a copy, under its number as name, or start anew with --fresh (the old run "
            "is moved aside)."
        )
    return None


def list_set_aside(directory: Path) -> list[tuple[str, str]]:
    """Returns (name, what was found) of each step that was set aside, the newest step first."""
    found = []
    for path in directory.glob(f"*{BAD}*"):
        if match := re.fullmatch(rf"(\d+){re.escape(BAD)}(?:-(\d+))?", path.name):
            damage = path / DAMAGE
            why = damage.read_text(encoding="utf-8").strip() if damage.is_file() else "set aside earlier"
            found.append((int(match[1]), int(match[2] or 1), path.name, why.replace("\n", "; ")))
    return [(name, why) for _, _, name, why in sorted(found, reverse=True)]


def _set_aside(path: Path, problems: list[str]) -> str:
    """Renames a damaged step, in the first process for all; returns its new name."""
    name = ""
    if processes.is_primary():
        name, number = f"{path.name}{BAD}", 1
        while (path.parent / name).exists():
            number += 1
            name = f"{path.name}{BAD}-{number}"
        try:
            storage.bounded(lambda: path.rename(path.parent / name), LOOK_S)
        except OSError as error:
            raise CheckpointError(
                f"{path}: is damaged ({in_short(problems)}) and cannot be renamed to {name} "
                f"({error.strerror or error}). Move it away yourself to go on from the one before it."
            ) from error
        write_text(path.parent / name / DAMAGE, "".join(f"{problem}\n" for problem in problems))
    return group.broadcast(name, "the damaged checkpoint")
