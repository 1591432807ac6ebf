"""What a tracker shows of a run beside its metrics: name, settings, tags. Read from the run directory, as text."""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.files import read_text
from engine.config.schema import Config
from engine.config.text import field_texts
from engine.experiments.record import plain
from engine.observe.tensorboard import is_hyperparameter
from engine.run import code
from engine.run.directory import RunDirectory

_PARENT = re.compile(r"init\.(sources\..+\.)?checkpoint")


@dataclass(frozen=True)
class RunInfo:
    """A run, as its files describe it.

    Attributes:
        name: the name of its directory.
        project: the name of its config.
        path: the run directory.
        config: the file with the resolved config.
        settings: dotted name -> value of each setting.
        hyperparameters: those of the settings that are not defaults, and a few that every run has.
        started: when the first row was written, or now; in seconds since 1970.
        tags: the commit and the versions of the code, the config, and the run that the first weights come from.
    """

    name: str
    project: str
    path: Path
    config: Path
    settings: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    tags: Mapping[str, str]
    started: float


def read_run(directory: RunDirectory) -> RunInfo:
    """Returns what the files of a run say. Raises OSError if the config cannot be read, and ValueError."""
    lines = (line.partition(": ") for line in read_text(directory.config).splitlines() if not line.startswith("#"))
    texts = {name: text for name, colon, text in lines if colon}
    defaults = field_texts(Config())
    settings = {name: plain(text) for name, text in texts.items()}
    chosen = {n: settings[n] for n, text in texts.items() if is_hyperparameter(n, defaults.get(n) == text)}
    project = str(settings.get("name") or "convoy")
    path = Path(os.path.abspath(directory.path))
    tags = {"config": project, "directory": os.fspath(path), **_code_tags(directory)}
    if parents := [str(value) for name, value in settings.items() if value and _PARENT.fullmatch(name)]:
        tags["parent"] = ", ".join(parents)
    return RunInfo(path.name, project, path, directory.config, settings, chosen, tags, _started(directory))


def _started(directory: RunDirectory) -> float:
    try:
        with open(directory.metrics, "rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return time.time()


def _code_tags(directory: RunDirectory) -> dict[str, str]:
    found = code.read(directory.code)
    tags = {f"version.{name}": version for name, version in found.packages.items()}
    if found.commit:
        tags["git.commit"] = found.commit
        tags["git.dirty"] = {True: "yes", False: "no", None: "unknown"}[found.dirty]
    return tags
