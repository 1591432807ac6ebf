"""The schema as a tree of slots, and the check of one value against its slot.

A slot describes one position in a config: a typed value, a section (fixed fields), a table (user-chosen names, each
with a section: `evaluations`), or an open dict (any names and plain values: `sharding.rules`). A section that is a
`Target` also accepts arguments. `validation.py` checks combinations of fields.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from engine.base.duration import Duration
from engine.base.errors import FieldError, UnknownFieldError, near_names
from engine.config.schema import Config, Plain, Target, field_names
from engine.config.setting import Setting, setting_of

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Duration: "a duration",
    type(None): "None",
}
MAX_BITS, MAX_DEPTH = 64, 20  # bits of an integer, and levels of nested tuples and dicts

_ENTRY_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one position in a config allows. At most one of the first four fields is set; none: any plain value."""

    types: tuple[type, ...] = ()  # allowed types of a value
    section: type | None = None  # dataclass of schema.py
    entries: type | None = None  # section of each entry of a table
    open: bool = False  # an open dict
    setting: Setting = dataclasses.field(default=Setting(""), compare=False)

    @property
    def is_container(self) -> bool:
        """Whether it contains other slots."""
        return self.section is not None or self.entries is not None or self.open

    @property
    def optional(self) -> bool:
        """Whether None is allowed."""
        return not self.types or type(None) in self.types


PLAIN = Slot()
OPEN = Slot(open=True)
ROOT = Slot(section=Config)


@functools.cache
def slots(section: type) -> Mapping[str, Slot]:
    """Returns field name -> slot of a section, in schema order."""
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section) if field.name != "arguments"}
    return {name: _slot(hints[name], setting_of(field)) for name, field in fields.items()}


def _slot(hint: object, setting: Setting) -> Slot:
    if isinstance(hint, type):
        if setting.auto:
            return Slot(types=(hint, str), setting=setting)
        is_value = hint is Duration or not dataclasses.is_dataclass(hint)
        return Slot(types=(hint,), setting=setting) if is_value else Slot(section=hint)
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return Slot(types=arguments, setting=setting)
    if typing.get_origin(hint) is Mapping and isinstance(entry := arguments[1], type) and entry is not str:
        return Slot(entries=entry, setting=setting)
    return Slot(open=True, setting=setting)


def child(slot: Slot, name: object, path: str) -> Slot:
    """Returns the slot of `name` inside the container `slot`; `path` is the full path of `name`, for errors.

    Raises:
        UnknownFieldError: the section has no such field.
        FieldError: not a valid name of an entry or an argument.
    """
    if slot.entries is not None:
        if not isinstance(name, str) or not _ENTRY_NAME.fullmatch(name):
            raise FieldError(path, "is not a valid name of an entry", "Use letters, digits, '_' and '-'.")
        return Slot(section=slot.entries)
    if slot.section is None:
        return PLAIN
    if isinstance(name, str) and name in slots(slot.section):
        return slots(slot.section)[name]
    if issubclass(slot.section, Target):
        if not isinstance(name, str) or not name.isidentifier():
            raise FieldError(path, "is not a valid name of an argument", "Use letters, digits and '_'.")
        return PLAIN
    raise unknown_field(path, slot.section)


def join(path: str, name: object) -> str:
    """Returns the dotted path of `name` below `path`."""
    text = name if isinstance(name, str) else _repr(name)
    return f"{path}.{text}" if path else text


def unknown_field(path: str, section: type) -> UnknownFieldError:
    """Returns the error for a field that `section` does not have; suggests similar names, first of the same section."""
    parent, _, leaf = path.rpartition(".")
    siblings, below = field_names(section), list(closed_paths(section, parent))
    similar = [path for path in below if path.endswith(f".{leaf}")][:3]
    similar = similar or [join(parent, name) for name in near_names(leaf, siblings)]
    similar = similar or _with_leaf(leaf, below) or _with_leaf(leaf, list(closed_paths()))
    suggestion = f"Did you mean {' or '.join(similar)}? " if similar else ""
    return UnknownFieldError(path, "unknown field", f"{suggestion}Fields here: {', '.join(siblings)}.")


def _with_leaf(leaf: str, paths: list[str]) -> list[str]:
    """Returns at most three of the paths whose last name is similar to `leaf`."""
    matches = near_names(leaf, dict.fromkeys(path.rpartition(".")[2] for path in paths), cutoff=0.7)
    return [path for match in matches for path in paths if path.rpartition(".")[2] == match][:3]


def closed_paths(section: type = Config, path: str = "") -> Iterator[str]:
    """Yields the dotted path of every field of the schema, except those inside tables."""
    for name, slot in slots(section).items():
        yield join(path, name)
        if slot.section is not None:
            yield from closed_paths(slot.section, join(path, name))


def describe(slot: Slot) -> str:
    """Returns the allowed types of a slot in words: `an integer or None`."""
    return " or ".join(_WORDS[kind] for kind in slot.types) or "any plain value"


def check_value(slot: Slot, value: object, path: str) -> Plain:
    """Returns `value` as a draft stores it: an int as float if a float is required, lists as tuples, durations as text.

    Raises:
        FieldError: wrong type, or a value that the rule of the field does not allow.
    """
    if not slot.types:
        return _plain(value, path)
    if isinstance(value, Duration):
        value = str(value)
    _check_size(value, path)
    if type(value) is int and float in slot.types and int not in slot.types:
        value = float(value)
    if type(value) not in slot.types and not (type(value) is str and Duration in slot.types):
        raise FieldError(path, f"found {show(value)}, allowed is {describe(slot)}", _advice(slot, value))
    plain = _plain(value, path)
    if plain is not None and slot.setting.rule is not None:
        slot.setting.rule.check(plain, path)
    return plain


def _advice(slot: Slot, value: object) -> str:
    """Returns what to write instead of a value of the wrong type."""
    if callable(value):
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        return f"Name a function or class by its dotted path: '{name}'."
    if Duration in slot.types and type(value) in (int, float) and slot.setting.rule is not None:
        return f"Write the unit too: '{value} UNIT'. {slot.setting.rule.text}"
    return ""


def _check_size(value: object, path: str) -> None:
    """Raises FieldError for a number that is not finite, or an integer that Python may not be able to print."""
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(path, f"found {value}", "A config holds finite numbers.")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise FieldError(
            path, f"found an integer of {value.bit_length()} bits", f"A config holds integers of up to {MAX_BITS} bits."
        )


def _plain(value: object, path: str, depth: int = 0) -> Plain:
    _check_size(value, path)
    if depth > MAX_DEPTH:
        raise FieldError(path.partition(".")[0], "is nested too deeply", f"Allowed: at most {MAX_DEPTH} levels.")
    if value is None or (isinstance(value, str | int | float) and type(value) in (str, int, float, bool)):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(item, path, depth + 1) for item in value)
    if isinstance(value, Mapping | ConfigDict):
        for key in value:
            if type(key) not in (str, int):
                raise FieldError(path, f"found the key {show(key)}", "Keys are text or integers.")
            _check_size(key, path)
        return {key: _plain(item, join(path, key), depth + 1) for key, item in value.items()}
    allowed = "A config holds text, integers, numbers, true or false, None, and tuples and dicts of them."
    raise FieldError(path, f"found {show(value)}", f"{allowed} {_advice(PLAIN, value)}".rstrip())


def show(value: object) -> str:
    """Returns a value for an error text, shortened, with its type if it may be unclear."""
    if isinstance(value, Mapping | ConfigDict):
        return "a dict"
    text = _repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    kinds = {str: " (text)", int: " (an integer)", float: " (a number)"}
    return f"{text}{kinds.get(type(value), '')}"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # Python prints no integer of over 4,300 digits, and a value of another class may print nothing
        return f"a value of type {type(value).__name__}"
