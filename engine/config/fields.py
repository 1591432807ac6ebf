"""The schema as a tree of slots: what may stand at a dotted path, and of which type.

Owns: walking `schema.py` by name, the types of values, and the sentence for a name that is not there. Does not own:
ranges and choices of single fields (`checks.py`), combinations of fields (`validation.py`).

Terms. *Slot*: a place in a config. It holds a *value*, a *section* (named fields), an *entry table* (new names, each
with a section: `evaluations`), or an *open dict* (any names, any plain values: `sharding.rules`). A section that is a
`Target` takes further names, the arguments. *Plain value*: text, int, float, bool, None, tuples and dicts of them.
"""

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from engine.config.errors import FieldError, UnknownFieldError
from engine.config.schema import Config, Target, field_names

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "None"}
_ENTRY_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclasses.dataclass(frozen=True)
class Slot:
    """What may stand at one place of a config; exactly one of the first four says so, none means any plain value."""

    types: tuple[type, ...] = ()  # of a typed value
    section: type | None = None  # dataclass of schema.py
    entries: type | None = None  # section of each entry of a table
    open: bool = False  # any names
    owner: type | None = None  # the section that a typed value is a field of
    name: str = ""  # of that field

    @property
    def is_container(self) -> bool:
        """Whether names stand below it."""
        return self.section is not None or self.entries is not None or self.open

    @property
    def optional(self) -> bool:
        """Whether None may stand here."""
        return not self.types or type(None) in self.types


PLAIN = Slot()
OPEN = Slot(open=True)
ROOT = Slot(section=Config)


@functools.cache
def slots(section: type) -> Mapping[str, Slot]:
    """Returns name -> slot of the fields of a section, in the order of the schema."""
    hints = typing.get_type_hints(section)
    return {name: _slot(hints[name], section, name) for name in field_names(section)}


def _slot(hint: Any, owner: type, name: str) -> Slot:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return Slot(section=hint)
    if isinstance(hint, type):
        return Slot(types=(hint,), owner=owner, name=name)
    arguments = list(typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return Slot(types=tuple(arguments), owner=owner, name=name)
    entry = arguments[1]  # Mapping[str, entry]
    return Slot(entries=entry) if dataclasses.is_dataclass(entry) and isinstance(entry, type) else OPEN


def child(slot: Slot, name: str, path: str) -> Slot:
    """Returns the slot of `name` inside the container `slot`; `path` is where `name` itself stands.

    Raises:
        UnknownFieldError: a closed section has no such field.
        FieldError: a name that an entry cannot have.
    """
    if slot.entries is not None:
        if not isinstance(name, str) or not _ENTRY_NAME.fullmatch(name):
            raise FieldError(path, "is no name of an entry", "Use letters, digits, '_' and '-'.")
        return Slot(section=slot.entries)
    if slot.section is None:
        return PLAIN
    if name in slots(slot.section):
        return slots(slot.section)[name]
    if issubclass(slot.section, Target):
        if not isinstance(name, str) or not name.isidentifier():
            raise FieldError(path, "is no name of an argument", "Use letters, digits and '_'.")
        return PLAIN
    raise unknown_field(path, slot.section)


def join(path: str, name: Any) -> str:
    """Returns the dotted path of `name` below `path`."""
    return f"{path}.{name}" if path else str(name)


def unknown_field(path: str, section: type) -> UnknownFieldError:
    """Returns the error for a field that `section` does not have, with near names from here or from anywhere."""
    parent, _, leaf = path.rpartition(".")
    here = field_names(section)
    near = [join(parent, name) for name in difflib.get_close_matches(leaf, here, n=2, cutoff=0.6)]
    if not near:
        everywhere = list(closed_paths())
        leaves = {known.rpartition(".")[2] for known in everywhere}
        matches = difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.7)
        near = [known for match in matches for known in everywhere if known.rpartition(".")[2] == match][:3]
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return UnknownFieldError(path, "unknown field", f"{meant}Fields here: {', '.join(here)}.")


def closed_paths(section: type = Config, path: str = "") -> Iterator[str]:
    """Yields the dotted path of every field of the schema that does not lie in an entry table."""
    for name, slot in slots(section).items():
        yield join(path, name)
        if slot.section is not None:
            yield from closed_paths(slot.section, join(path, name))


def describe(slot: Slot) -> str:
    """Returns the types of a slot in words: `an integer or None`."""
    return " or ".join(_WORDS[kind] for kind in slot.types) or "any plain value"


def typed(slot: Slot, value: Any, path: str) -> Any:
    """Returns `value` as a slot keeps it: an int as float where a float is wanted, lists as tuples.

    Raises:
        FieldError: another type than the slot's, a number that is not finite, or no plain value.
    """
    if not slot.types:
        return _plain(value, path)
    kind = type(value)
    if kind is int and float in slot.types and int not in slot.types:
        kind, value = float, float(value)
    if kind not in slot.types:
        raise FieldError(path, f"found {_show(value)}, allowed is {describe(slot)}", _advice(slot, value))
    return _plain(value, path)


def _advice(slot: Slot, value: Any) -> str:
    """What to write instead of a value of the wrong type."""
    if callable(value):
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        return f"Name a function or class by its dotted path: '{name}'."
    if slot.name in ("total", "every", "warmup") and type(value) in (int, float):
        return f"Write the unit too, such as '{value} epochs' or '{value} steps'."
    return ""


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(path, f"found {value}", "A config holds finite numbers.")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(item, path) for item in value)
    if isinstance(value, Mapping | ConfigDict):
        for key in value:
            if type(key) not in (str, int):
                raise FieldError(path, f"found the key {key!r}", "Keys are text or integers.")
        return {key: _plain(item, join(path, key)) for key, item in value.items()}
    allowed = "A config holds text, integers, numbers, true or false, None, and tuples and dicts of them."
    raise FieldError(path, f"found {_show(value)}", f"{allowed} {_advice(PLAIN, value)}".rstrip())


def _show(value: Any) -> str:
    if isinstance(value, Mapping | ConfigDict):
        return "a dict"
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    kinds = {str: " (text)", int: " (an integer)", float: " (a number)"}
    return f"{text}{kinds.get(type(value), '')}"
