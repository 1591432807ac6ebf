"""Config sections of objects that `engine.train` received instead of dotted paths.

Such a section names `Instance` as its target and describes the object. The engine uses the object itself. Only Python
code that has the object can start, resume or load such a run: building the section raises an error that says so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

from engine.base.errors import ConfigError
from engine.config.target import INSTANCE

_PLAIN = (bool, int, float, str, type(None))


class Instance:
    """Stands for an object of class `type`, which only the Python code that started the run has."""

    def __init__(self, type: str, fields: Mapping[str, Any] | None = None):
        missing(type)


def missing(type_name: str) -> NoReturn:
    """Raises the ConfigError for an object that was not passed again."""
    raise ConfigError(
        f"the run was started from Python with an object of {type_name}, which a config cannot hold. Pass the object "
        "again: engine.train(run, task=..., data=..., evaluation_data=..., hooks=...), engine.load(run, task=...), "
        "engine.evaluate(run, task=..., evaluation_data=...), engine.predict(run, task=..., data=...). For the command "
        "line, name a class or function by dotted path in the config."
    )


def section_of(value: object) -> dict[str, Any]:
    """Returns the section of an object: its class, and the plain fields of a dataclass, which a resume compares."""
    section: dict[str, Any] = {"target": INSTANCE, "type": f"{type(value).__module__}.{type(value).__qualname__}"}
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if plain := {name: item for name, item in found.items() if isinstance(item, _PLAIN)}:
            section["fields"] = plain
    return section
