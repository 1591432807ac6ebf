"""The settings of a run, with what differs from the defaults and from the run that it started from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from engine.base.files import read_text
from engine.config.schema import Config, Evaluation, Hook
from engine.config.text import field_texts
from engine.experiments.record import RunRecord


class Setting(NamedTuple):
    """A setting as text.

    Attributes:
        name: dotted name.
        value: its value.
        default: the default; None if there is none, as for the arguments of a Task.
        parent: the value of the parent run; None if that has no such setting, or there is no parent.
    """

    name: str
    value: str
    default: str | None
    parent: str | None


class Parent(NamedTuple):
    """The run whose weights another run started with: its path, and its settings; None if they cannot be read."""

    path: str
    settings: Mapping[str, str] | None


def read_texts(path: Path) -> dict[str, str]:
    """Returns name -> text of each line of a `config.txt`. Raises OSError."""
    pairs = (line.partition(": ") for line in read_text(path).splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def parent_of(record: RunRecord) -> Parent | None:
    """Returns the parent of a run; None if it has none, or several.

    A relative path is one of the current folder, or lies beside the run.
    """
    if not record.parent or ", " in record.parent:
        return None
    named = Path(record.parent)
    folders = [named, *named.parents[:2]]  # the run, its checkpoints, or one of these
    for folder in (base / each for base in (Path(), Path(record.path).parent) for each in folders):
        if (folder / "config.txt").is_file():
            try:
                return Parent(record.parent, read_texts(folder / "config.txt"))
            except OSError:
                break
    return Parent(record.parent, None)


def settings_of(texts: Mapping[str, str], parent: Parent | None) -> list[Setting]:
    """Returns the settings of a run in their order.

    Args:
        texts: name -> text of each setting.
        parent: the parent of the run.
    """
    defaults, before = _defaults(texts), (parent and parent.settings) or {}
    return [Setting(name, text, defaults.get(name), before.get(name)) for name, text in texts.items()]


def _defaults(texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the defaults of the settings, of evaluations and hooks that a config has added, too."""
    named = {
        kind: {name.split(".")[1] for name in texts if name.startswith(f"{kind}.")} for kind in ("evaluations", "hooks")
    }
    evaluations = dict.fromkeys(named["evaluations"], Evaluation())
    hooks = dict.fromkeys(named["hooks"], Hook())
    return field_texts(dataclasses.replace(Config(), evaluations=evaluations, hooks=hooks))
