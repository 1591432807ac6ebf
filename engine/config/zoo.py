"""Dotted paths of the zoo, the models and configs that ship with the engine, and those of earlier releases.

A config may leave out the `convoy_zoo.` of `convoy_zoo.models` and `convoy_zoo.configs`, as stored runs of earlier
releases do, unless the user has a module of the short name. A Config always holds the full name, so that a saved run
resumes with the same code from any folder.
"""

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Mapping
from importlib.machinery import PathFinder

ZOO = "convoy_zoo"
PACKAGES = ("models", "configs")
MOVED = {
    "engine.data.array_record": "engine.readers.array_record",
    "engine.metrics.detection": "engine.driving.detection",
    "engine.metrics.detection_score": "engine.driving.detection_score",
    "engine.metrics.forecasting": "engine.driving.forecasting",
}
"""Module of version 0.2.0 -> its module today. Stored runs with such a path stay readable; a config gets a warning."""


def current(path: str) -> str:
    """Returns today's dotted path for one of an earlier release; any other path unchanged."""
    module, _, name = path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else path


def modules(package: str) -> list[str]:
    """Returns the names of the zoo's modules and packages in `package`, models or configs; none without the zoo."""
    try:
        folders = importlib.import_module(ZOO).__path__
    except ModuleNotFoundError:
        return []
    return sorted(info.name for folder in folders for info in pkgutil.iter_modules([os.path.join(folder, package)]))


def canonical(name: str) -> str:
    """Returns the dotted `name` as a Config holds it: the full name for a short name of the zoo, else `name`.

    A short name is the user's if the user has a module of that name.
    """
    package, _, rest = name.partition(".")
    module = rest.partition(".")[0]
    if package not in PACKAGES or module not in modules(package):
        return name
    found, shipped = _file_of(package, module), _file_of(f"{ZOO}.{package}", module)
    if found and not (shipped and os.path.samefile(found, shipped)):
        return name
    return f"{ZOO}.{name}"


def current_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns settings, by field, in which code has today's names also where an earlier release stored others."""
    return {name: canonical(current(text)) if name.endswith(".target") else text for name, text in settings.items()}


def _file_of(package: str, module: str) -> str | None:
    """The file that `import package.module` would load; nothing is imported."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    inner = PathFinder.find_spec(f"{package}.{module}", folders) if folders else None
    if inner is None or inner.origin is None:
        return None
    return inner.origin if os.path.isfile(inner.origin) else None
