"""Joins things by what they were made from: a checkpoint belongs to a run, and data to a dataset.

A checkpoint is identified by the hash of its manifest, and a dataset by the checksums of its files. So a run or a
dataset that was moved is found, and another one at the old path is not taken for it.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.manifest import manifest_hash
from engine.experiments.index import Deadline
from engine.lineage.things import DATASET, RUN, Thing, thing_at
from engine.run.lineage import CHECKPOINT, Input


@dataclass(frozen=True)
class Found:
    """What an input refers to.

    Attributes:
        thing: the run or the dataset; None if it was not found.
        path: where it was when the input was recorded.
        note: what a reader must know: that it was moved, that it is only assumed, or that it is missing.
        sure: whether its content identifies it.
    """

    thing: Thing | None
    path: str
    note: str = ""
    sure: bool = True


class Graph:
    """Things, and what they were made from.

    Args:
        folder: folder below which things are known; their recorded paths outside of it are looked up, too.
        things: the things below it.
        deadline: ends the search for what was made from what.
    """

    def __init__(self, folder: Path, things: Iterable[Thing], deadline: Deadline | None = None):
        self.folder, self._deadline = folder.resolve(), deadline or Deadline()
        self._things = {thing.path: thing for thing in things}
        self._looked_up: dict[Path, Thing | None] = {}
        self._read: dict[Path, frozenset[str]] = {}

    @property
    def things(self) -> list[Thing]:
        """The things below the folder."""
        return list(self._things.values())

    def at(self, path: Path) -> Thing | None:
        """Returns the thing at a path, also outside of the folder. A link stands for what it refers to."""
        if path not in self._looked_up:
            found = self._things.get(path.resolve()) or thing_at(path)
            self._looked_up[path] = self._things.get(found.path, found) if found is not None else None
        return self._looked_up[path]

    def name(self, path: Path | str) -> str:
        """Returns a path relative to the folder if it is below it."""
        path = Path(path)
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def upstream(self, thing: Thing) -> Iterator[tuple[Input, Found]]:
        """Yields what a thing was made from: each checkpoint with its run, and each dataset that its data reads.

        Data without a dataset of its own is left out.
        """
        for one in thing.record.inputs:
            if one.kind == CHECKPOINT:
                yield one, self.run_of(one, thing)
            else:
                for found in self.datasets_of(one):
                    yield one, found

    def run_of(self, one: Input, user: Thing) -> Found:
        """Returns the run that a checkpoint belongs to.

        Args:
            one: the checkpoint.
            user: the thing that was made from it.
        """
        recorded = self._run_at(one.path, user)
        if not one.id:
            if recorded is None:
                return Found(None, one.path, "unknown: no run is found there", sure=False)
            return Found(recorded, one.path, "found by its path alone: its content was not recorded", sure=False)
        holders = self._holders.get(one.id, [])
        if recorded is not None and (recorded in holders or one.id in self._hashes(recorded.path)):
            return Found(recorded, one.path)
        if holders:
            more = f"; copies in {', '.join(self.name(each.path) for each in holders[1:])}" if holders[1:] else ""
            return Found(holders[0], one.path, f"moved from {one.path}{more}")
        if recorded is not None:
            text = f"its checkpoint {one.step} is no longer there, so this may be another run"
            return Found(recorded, one.path, text, sure=False)
        if one.step is None:
            return Found(None, one.path, "weights of another program: their data is unknown", sure=False)
        return Found(None, one.path, "unknown: no run is found there, and none has this checkpoint", sure=False)

    def datasets_of(self, one: Input) -> list[Found]:
        """Returns the written datasets that data reads."""
        found = []
        for path, identity in zip(one.path.split("\n") if one.path else (), one.datasets, strict=False):
            holders = self._datasets.get(identity, [])
            recorded = self._dataset_at(path)
            if recorded is not None and recorded.record.id == identity:
                found.append(Found(recorded, path))
            elif holders:
                found.append(Found(holders[0], path, f"moved from {path}"))
            elif recorded is not None:
                found.append(Found(None, path, "unknown: the dataset there is another one", sure=False))
            else:
                found.append(Found(None, path, "unknown: no record is found there", sure=False))
        return found

    @functools.cached_property
    def users(self) -> Mapping[Path, list[tuple[Thing, Input, Found]]]:
        """Path of a thing -> what was made from it: the other thing, the input, and what the input refers to."""
        found: dict[Path, list[tuple[Thing, Input, Found]]] = {}
        for thing in self.things:
            if self._deadline.ends_search():
                break
            for one, source in self.upstream(thing):
                if source.thing is not None:
                    found.setdefault(source.thing.path, []).append((thing, one, source))
        return found

    @functools.cached_property
    def _holders(self) -> Mapping[str, list[Thing]]:
        """Hash of a checkpoint's manifest -> the runs below the folder that have it."""
        found: dict[str, list[Thing]] = {}
        for thing in self.things:
            if self._deadline.ends_search():
                break
            for identity in self._hashes(thing.path) if thing.kind == RUN else ():
                found.setdefault(identity, []).append(thing)
        return found

    @functools.cached_property
    def _datasets(self) -> Mapping[str, list[Thing]]:
        found: dict[str, list[Thing]] = {}
        for thing in self.things:
            if thing.kind == DATASET and thing.record.id:
                found.setdefault(thing.record.id, []).append(thing)
        return found

    def _run_at(self, path: str, user: Thing) -> Thing | None:
        """Returns the run at a path. One that is not absolute, as in a config, may refer to several folders."""
        written = Path(path).expanduser()
        folders = (Path(), self.folder, self.folder.parent, user.path.parent, user.path.parent.parent)
        for candidate in [written] if written.is_absolute() else [folder / written for folder in folders]:
            thing = self.at(candidate)
            if thing is not None and thing.kind == RUN and thing is not user:
                return thing
        return None

    def _dataset_at(self, path: str) -> Thing | None:
        thing = self.at(Path(path)) if path else None
        return thing if thing is not None and thing.kind == DATASET else None

    def _hashes(self, run: Path) -> frozenset[str]:
        """Returns the hashes of the manifests of a run's checkpoints."""
        if run not in self._read:
            try:
                steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
            except OSError:
                steps = []
            self._read[run] = frozenset(filter(None, map(manifest_hash, steps)))
        return self._read[run]
