"""Writes the files of a project into a folder. It never overwrites a file."""

import importlib.resources
import os
import re
import textwrap
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from engine.base.errors import ConfigError
from engine.scaffold.kinds import KINDS, Kind

SUFFIX = ".tmpl"  # of a template, so that no tool takes it for code
_WIDTH = 118  # of a line of a README


def project_name(folder: Path) -> str:
    """Returns the name of the project in a folder: that of the folder, with "-" for what is no letter or digit."""
    return re.sub(r"\W+", "-", folder.name, flags=re.ASCII).strip("-") or "project"


def project_files(kind: Kind, name: str) -> dict[str, str]:
    """Returns file name -> text of a project."""
    values = {"NAME": name, "METRIC": kind.metric, "ABOUT": _wrapped(kind.about), "OWN": _wrapped(kind.own)}
    found = {}
    for template in (*_templates("common"), *_templates(kind.name)):
        text = template.read_text("utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        file = template.name.removesuffix(SUFFIX)
        found[".gitignore" if file == "gitignore" else file] = text
    return dict(sorted(found.items()))


def _templates(folder: str) -> Iterator[Traversable]:
    for entry in (importlib.resources.files("engine.scaffold") / "templates" / folder).iterdir():
        if entry.name.endswith(SUFFIX):
            yield entry


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def write_project(folder: Path, kind: str) -> list[str]:
    """Writes a project and returns the names of its files.

    Args:
        folder: the folder, which is created if it is missing.
        kind: one of KINDS.

    Raises:
        ConfigError: a file of the project exists, or the folder cannot be written. Nothing of it is overwritten.
    """
    files = project_files(KINDS[kind], project_name(folder.absolute()))
    if taken := [name for name in files if os.path.lexists(folder / name)]:
        raise ConfigError(
            f"{folder}: {', '.join(taken)} already exist{'s' * (len(taken) == 1)}, and convoy init overwrites nothing. "
            "Choose another folder: convoy init FOLDER."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with open(folder / name, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror or error}). Choose another folder: convoy init FOLDER."
        ) from error
    return list(files)
