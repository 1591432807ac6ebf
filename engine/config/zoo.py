"""Names of the models and configs that ship with the engine, the zoo: `convoy_zoo.models`, `convoy_zoo.configs`.

The short names `models.digits.Digits` and `configs.digits` work wherever no module of the user has the same name. A
Config always holds the name of the code that it uses: the short name where that leads to the zoo's own file, as in the
repository, and the full name elsewhere. So a saved run resumes with the same code from any folder.
"""

import importlib
import importlib.util
import os
import pkgutil
from importlib.machinery import PathFinder
from typing import Any

ZOO = "convoy_zoo"
PACKAGES = ("models", "configs")


def modules(package: str) -> list[str]:
    """Returns the names of the zoo's modules and packages in `package`, models or configs; none without the zoo."""
    try:
        folders = importlib.import_module(ZOO).__path__
    except ModuleNotFoundError:
        return []
    return sorted(info.name for folder in folders for info in pkgutil.iter_modules([os.path.join(folder, package)]))


def canonical(name: str) -> str:
    """Returns the dotted `name` as a Config holds it; a name that is not the zoo's is returned as it is.

    A full name stays the zoo's. A short name is the user's if the user has a module of that name.
    """
    short = name.removeprefix(f"{ZOO}.")
    package, _, rest = short.partition(".")
    module = rest.partition(".")[0]
    if package not in PACKAGES or module not in modules(package):
        return name
    found, shipped = _file_of(package, module), _file_of(f"{ZOO}.{package}", module)
    if found and shipped and os.path.samefile(found, shipped):
        return short
    return name if found else f"{ZOO}.{short}"


def _file_of(package: str, module: str) -> str | None:
    """The file that `import package.module` would load; nothing is imported."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    inner = PathFinder.find_spec(f"{package}.{module}", folders) if folders else None
    if inner is None or inner.origin is None:
        return None
    return inner.origin if os.path.isfile(inner.origin) else None


def with_full_names(value: Any) -> Any:
    """Returns the values of a config of the zoo, in dicts and tuples, with the full name of each target of the zoo."""
    if isinstance(value, dict):
        return {key: _full(item) if key == "target" else with_full_names(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(with_full_names(item) for item in value)
    return value


def _full(target: Any) -> Any:
    package, _, rest = target.partition(".") if isinstance(target, str) else ("", "", "")
    return f"{ZOO}.{target}" if package in PACKAGES and rest.partition(".")[0] in modules(package) else target
