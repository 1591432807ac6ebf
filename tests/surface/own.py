"""The packages of this repository that the wheel installs, and their modules.

They are read from `pyproject.toml`, so that code may move between packages without a change of the tests here.
"""

import importlib
import pkgutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("convoy_zoo", "models", "configs")  # models and configs, which are not part of the engine


def _packages() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [name for name in project["tool"]["setuptools"]["packages"] if name.split(".")[0] not in SHIPPED]


PACKAGES = _packages()
"""Dotted names of all packages of the engine, subpackages included."""
TOPS = tuple(dict.fromkeys(name.split(".")[0] for name in PACKAGES))


def is_own(module: str) -> bool:
    """Whether a module is part of the engine, and not of a library or a test."""
    return module.split(".")[0] in TOPS


def import_all() -> None:
    """Imports every module of the engine."""
    for name in PACKAGES:
        for found in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            importlib.import_module(found.name)
