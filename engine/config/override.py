"""Parser of dotted overrides, `train.total=2 epochs`, for the command line and for `config.txt`.

The text of a typed field is parsed as its type; `None` (or none, null) is None if the field allows it. For arguments
of targets and open dicts, a Python literal is its value (`3`, `1e-3`, `(1, 2)`, `{'a': 1}`), true and false in any
case are booleans, `(data, fsdp)` is a tuple of words, and everything else is text. Quotes force text. Numbers that are
not finite (`nan`, `-inf`) are errors.
"""

import ast
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from engine.base.duration import Duration
from engine.base.errors import ConfigError, FieldError
from engine.config.draft import Draft
from engine.config.fields import ROOT, Slot, check_value, child, describe, join, slots
from engine.config.schema import Plain

_WORD_TUPLE = re.compile(r"[(\[]\s*(?:[\w./-]+\s*,\s*)+(?:[\w./-]+\s*)?[)\]]")
_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
_TEXT = {"true": True, "false": False}
_NONE = ("None", "none", "null")


def apply(draft: Draft, overrides: Iterable[str], prefix: str = "") -> None:
    """Sets the fields named by `overrides`, each "a.b=value".

    Args:
        draft: the config to change.
        overrides: the assignments, applied in order.
        prefix: what the user wrote before each path ("--config."), for the errors.

    Raises:
        ConfigError: not of the form a.b=value.
        FieldError: an unknown field, or a value that the field does not allow.

    An empty `init.checkpoint` also clears `init.paths`, and an empty checkpoint of a source removes the source.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{prefix}{text}: found no '='. Write {prefix}{path.strip() or 'train.total'}=VALUE.")
        try:
            set_text(draft, path.strip(), value)
        except FieldError as error:
            raise error.at(f"{prefix}{text.strip()}") from None
        _clear_paths(draft, path.strip())


def _clear_paths(draft: Draft, path: str) -> None:
    """Removes the paths of `init` or of one of its sources if its checkpoint was set to nothing."""
    parent, _, name = path.rpartition(".")
    if name != "checkpoint" or parent.partition(".")[0] != "init":
        return
    section: Any = draft
    *tables, last = parent.split(".")
    for part in tables:
        section = section[part]
    if not section[last]["checkpoint"]:
        if tables:
            del section[last]
        else:
            section[last]["paths"] = {}


def set_text(draft: Draft, path: str, text: str) -> None:
    """Sets the field at a dotted path from text. Raises FieldError."""
    slot = locate(path)
    assign(draft, path, parse(slot, text, path))


def locate(path: str) -> Slot:
    """Returns the slot at a dotted path; `tiny.<path>` is the slot of that path. Raises FieldError."""
    slot, here = ROOT, ""
    if path.startswith("tiny."):
        try:
            return locate(path.removeprefix("tiny."))
        except FieldError as error:
            raise type(error)(path, error.problem, error.advice) from None
    for name in path.split("."):
        if not name:
            raise FieldError(path, "contains an empty name", "Separate names by single dots.")
        if slot.types:
            raise FieldError(join(here, name), f"{here} is a value and has no fields", f"Set {here} itself.")
        slot, here = child(slot, name, join(here, name)), join(here, name)
    return slot


def assign(draft: Draft, path: str, value: object) -> None:
    """Sets the field at a dotted path; creates missing entries and dicts on the way. Raises FieldError."""
    *parents, name = path.split(".") if not path.startswith("tiny.") else path.split(".", 1)
    here, container = "", draft
    for part in parents:
        here = join(here, part)
        if part not in container:
            container[part] = {}
        container = container[part]
        if not isinstance(container, ConfigDict):
            raise FieldError(path, f"{here} is {container!r} and has no fields", f"Set {here} itself.")
    container[name] = value


def parse(slot: Slot, text: str, path: str) -> Plain:
    """Parses the text of a value for a slot. Raises FieldError if the text is not of the slot's type."""
    text = text.strip()
    if slot.is_container:
        return _parse_dict(slot, text, path)
    if not slot.types:
        return _parse_plain(text)
    if slot.optional and text in _NONE:
        return None
    for kind, read in ((bool, _read_bool), (int, int), (float, float), (str, _read_text), (Duration, _read_text)):
        if kind in slot.types:
            try:
                return check_value(slot, read(text), path)
            except ValueError:
                continue
    raise FieldError(path, f"found {text!r}, allowed is {describe(slot)}", "")


def _read_bool(text: str) -> bool:
    if text.lower() not in _TEXT:
        raise ValueError(text)
    return _TEXT[text.lower()]


def _read_text(text: str) -> str:
    if len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0]:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        return value if isinstance(value, str) else text
    return text


def _parse_plain(text: str) -> Plain:
    if text.lower() in _TEXT:
        return _TEXT[text.lower()]
    if _NOT_FINITE.fullmatch(text):
        return float(text)  # `check_value` refuses it; as text it would reach the code of an optimizer
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if _WORD_TUPLE.fullmatch(text):
        return tuple(_parse_plain(word.strip()) for word in text[1:-1].split(",") if word.strip())
    return text


def _parse_dict(slot: Slot, text: str, path: str) -> Plain:
    value = _parse_plain(text)
    if isinstance(value, dict):
        return value
    if slot.section is not None:
        raise FieldError(path, f"found {text!r}, allowed is a section", f"Set one of: {_paths(slot, path)}.")
    raise FieldError(path, f"found {text!r}, allowed is a dict", f"Set one entry, {path}.NAME=VALUE, or write {{}}.")


def _paths(slot: Slot, path: str) -> str:
    return ", ".join(join(path, name) for name in slots(slot.section)) if slot.section else path
