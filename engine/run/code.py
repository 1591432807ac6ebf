"""`code.json`: where the code of a run lies and in which version, as its latest attempt found it.

Reading a run later uses it to import the Task from any folder, and to say what is missing (`engine/api/saved_run.py`).
"""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine import __version__
from engine.base import json_text
from engine.base.json_text import dumps, now
from engine.base.user_errors import is_user_code
from engine.cluster.consistency_check import LIBRARIES
from engine.storage.mounts import shown

GIT_S = 5.0  # timeout of a git command, which may read a slow disk


@dataclasses.dataclass(frozen=True)
class Code:
    """The code of a run.

    Attributes:
        folders: folders from which the targets of the config were imported; installed packages are left out.
        commit: git commit of the first folder; "" if it is no repository or git is missing.
        dirty: whether tracked files of the repository had uncommitted changes; None if git did not answer in time.
        packages: package -> version.
        attempt: the attempt that found this.
        time: when it started.
        environment: "devices", "processes" and "mesh" as text; empty in older runs.
        problem: why nothing is known, if the file is damaged.
    """

    folders: tuple[str, ...] = ()
    commit: str = ""
    dirty: bool | None = False
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attempt: int = 0
    time: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    def __str__(self) -> str:
        """The folders, the commit and the versions, as part of a sentence; "" for a run that has stored nothing."""
        if self.problem:
            return f"unknown folders ({self.problem})"
        if not self.time:
            return ""  # an older run
        where = ", ".join(self.folders) or "installed packages"
        changed = {True: " with uncommitted changes", False: "", None: " (uncommitted changes are unknown)"}[self.dirty]
        commit = f" at commit {self.commit[:12]}{changed}" if self.commit else ""
        versions = ", ".join(f"{name} {self.packages[name]}" for name in ("convoy", "jax") if name in self.packages)
        return f"{where}{commit}{f' ({versions})' if versions else ''}"


def describe(targets: Iterable[str], attempt: int, environment: Mapping[str, str] | None = None) -> Code:
    """Returns the code of the targets of a config, which have been imported; `environment` as in `Code`."""
    folders = tuple(dict.fromkeys(filter(None, map(_import_folder, targets))))
    commit, dirty = _git(folders[0] if folders else os.getcwd())
    packages = {"python": platform.python_version(), "convoy": __version__}
    for library in LIBRARIES:
        try:
            packages[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Code(folders, commit, dirty, packages, attempt, now(), environment or {})


def _import_folder(target: str) -> str | None:
    """Returns the folder on sys.path that holds a target of the user; None for an installed package."""
    name = target.partition(".")[0]
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    folders = [os.path.dirname(file)] if file else list(getattr(module, "__path__", ()))
    if not folders or name in ("engine", "__main__"):
        return None
    folder = os.path.abspath(folders[0])
    if not is_user_code(os.path.join(folder, "_")):
        return None
    return os.path.dirname(folder) if hasattr(module, "__path__") else folder


def _git(folder: str) -> tuple[str, bool | None]:
    """Returns the commit of the repository that holds a folder, and whether tracked files have changed.

    The commit is "" if it is not known, and the changes are None likewise.
    """
    commit = _run_git(folder, "rev-parse", "HEAD")
    if not commit:
        return "", False
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _run_git(folder: str, *words: str) -> str | None:
    """Returns the output of a git command; None if git is missing, fails, or does not answer in time."""
    try:
        done = subprocess.run(
            # Without optional locks: a `git status` that is killed in the middle would leave .git/index.lock behind.
            ["git", "--no-optional-locks", "-C", folder, *words],
            capture_output=True,
            text=True,
            errors="replace",  # names of files need not be UTF-8
            timeout=GIT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def to_text(code: Code) -> str:
    """Returns the text of `code.json`."""
    return dumps({(field := name.removesuffix("?")): vars(code)[field] for name in _SHAPE}, indent=1) + "\n"


_SHAPE = {
    "folders": [str],
    "commit": str,
    "dirty": bool | None,
    "packages": {str: str},
    "attempt": int,
    "time": str,
    "environment?": {str: str},
}


def read(path: Path) -> Code:
    """Returns the code of a run: an empty one if there is no file, as in older runs; a problem if it is damaged."""
    try:
        found = json_text.read(path, _SHAPE)
    except FileNotFoundError:
        return Code()
    except (OSError, ValueError) as error:
        return Code(problem=f"{shown(path)} is damaged: {json_text.reason(error)}")
    return Code(**{**found, "folders": tuple(found["folders"])})
