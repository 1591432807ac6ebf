"""Sorts runs into variants, which are runs that differ in nothing but the seed, and finds what differs between them."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import RunError
from engine.experiments.comparison import Variant
from engine.experiments.record import DAMAGED, SWEEP_HOOK, RunRecord, read_record
from engine.metrics.example_file import FOLDER
from engine.run import code
from engine.run.directory import RunDirectory
from engine.storage.mounts import local_path, shown

SEED = "train.seed"
_LABELS = ("log", "cache", "profile")  # sections of settings that change no result


@dataclasses.dataclass(frozen=True)
class Run:
    """What a comparison reads of a run directory, without the metrics of its examples.

    Attributes:
        folder: the run directory.
        record: settings and results.
        code: package, "commit" or "uncommitted changes" -> its version.
        environment: "devices", "mesh" and such.
        data: dataset -> fingerprint of its content.
        notes: sentences about a run that is not done, and about files that cannot be read.
    """

    folder: Path
    record: RunRecord
    code: Mapping[str, Any]
    environment: Mapping[str, str]
    data: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Reads a run directory, which may be in a bucket. Raises RunError if it is none."""
        folder = local_path(folder)
        record = read_record(folder, shown(folder))
        if not record.config:
            RunDirectory(folder).read_config_text()  # says what is wrong
            raise RunError(f"{shown(folder)}: no run that can be read. {record.problem}".rstrip())
        found = code.read(folder / "code.json")
        data, problem = contents(folder)
        notes = (_state(record), *(text and f"{text}." for text in (found.problem, problem)))
        versions = {"commit": found.commit[:12], "uncommitted changes": found.dirty, **found.packages}
        return cls(folder, record, versions, found.environment, data, tuple(filter(None, notes)))

    @property
    def seed(self) -> int | None:
        """The seed of its config."""
        return self.record.config.get(SEED)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that may change results."""
        return {
            name: value
            for name, value in self.record.config.items()
            if name != "name" and name.split(".")[0] not in _LABELS and not name.startswith(SWEEP_HOOK)
        }

    @cached_property
    def files(self) -> dict[str, Path]:
        """Evaluation -> its file of metrics of examples: of the best checkpoint, or else the newest."""
        found = {}
        for below in sorted((self.folder / FOLDER).glob("*")):
            files = {int(file.stem): file for file in below.glob("*.parquet") if file.stem.isdecimal()}
            if files:
                found[below.name] = files.get(-1 if self.record.best is None else self.record.best) or files[max(files)]
        return found


def contents(folder: Path) -> tuple[dict[str, str], str]:
    """Returns dataset -> fingerprint of its content, as far as the run has stored them; and what cannot be read."""
    file = folder / "data.json"
    try:
        stored = json_text.read(file, {str: {"content?": str}})
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"{shown(file)}: cannot be read ({json_text.reason(error)}), so the data is not compared"
    return {name: found["content"] for name, found in stored.items() if "content" in found}, ""


def _state(record: RunRecord) -> str:
    """Returns sentences about a run that is not done, and about its damaged files; "" if there are none."""
    if record.state in ("done", DAMAGED):
        return record.problem
    place = f"step {record.step} of {record.total_steps or 'an unknown number'}"
    return f"{record.path}: its state is {record.state} at {place}. {record.problem}".rstrip()


def variants_of(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """Returns the runs of each variant, in the order in which they were given, and notes.

    Runs of one variant have the same settings except for the seed, other seeds, and the same code and data.
    """
    found: list[list[Run]] = []
    for run in runs:
        fits = (group for group in found if _same(group[0], run) and run.seed not in [other.seed for other in group])
        if (group := next(fits, None)) is not None:
            group.append(run)
        else:
            found.append([run])
    notes = [note for run in runs for note in run.notes]
    places: dict[Path, Path] = {}
    for folder in (run.folder for run in runs):
        if (first := places.setdefault(folder.resolve(), folder)) is not folder:
            notes.append(f"{folder} is given twice." if folder == first else f"{folder} is the same run as {first}.")
    if len(found) == 1:
        found = [[run] for run in runs]
        notes.append("The runs differ in nothing but the seed, so each one is compared with the first.")
    for number, group in enumerate(found):
        for other in found[:number]:
            first, second = other[0], group[0]
            if first.seed != second.seed and _settings(first) == _settings(second) and not _same(first, second):
                what = "code" if first.code != second.code else "data"
                notes.append(
                    f"{second.folder} has the settings of {first.folder} and another seed, but other {what}, so it is "
                    "compared instead of counted as a seed."
                )
    return found, notes


def _same(one: Run, other: Run) -> bool:
    return (_settings(one), one.code, one.data) == (_settings(other), other.code, other.data)


def _settings(run: Run) -> dict[str, str]:
    return {name: repr(value) for name, value in run.settings.items() if name != SEED}


def describe(group: Sequence[Run]) -> Variant:
    """Returns the variant of some runs."""
    return Variant(group[0].record.path, tuple(run.record for run in group), tuple(run.seed for run in group))


def differences(variants: Sequence[Sequence[Run]]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Returns "settings", "code", "data" and "environment": name -> its value in each variant, where they differ.

    The seed of a variant with several runs is the text of all of them.
    """
    firsts = [group[0] for group in variants]
    settings = [run.settings for run in firsts]
    for group, values in zip(variants, settings, strict=True):
        if len(group) > 1:
            values[SEED] = ", ".join(str(run.seed) for run in group)
    return {
        "settings": _differing(settings),
        "code": _differing([run.code for run in firsts]),
        "data": _differing([run.data for run in firsts]),
        "environment": _differing([run.environment for run in firsts]),
    }


def _differing(found: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Returns name -> its value in each of several mappings, None where it is missing, for the names that differ."""
    names = dict.fromkeys(name for values in found for name in values)
    return {
        name: tuple(values.get(name) for values in found)
        for name in names
        if len({repr(values.get(name)) for values in found}) > 1
    }
