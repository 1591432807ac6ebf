"""A mutable config: an ml_collections ConfigDict that checks each assignment against the schema.

A plain ConfigDict forgets the type of a field that is None, sorts its keys, and reports an unknown field without its
path. A Draft raises at the line that makes a mistake. It holds what users write: durations stay text until
`validate`. Assigning a dict to a section (`c.data = dict(target=...)`) resets the section to its defaults first.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from engine.base.duration import Duration
from engine.base.errors import FieldError, UnknownFieldError
from engine.config.fields import OPEN, ROOT, Slot, check_value, child, join, show, slots, unknown_field
from engine.config.schema import Config, Target


class Draft(ConfigDict):
    """One section, table or open dict of a mutable config; `slot` is its place in the schema."""

    def __init__(self, initial: Mapping[str, object] | ConfigDict | None = None, *, slot: Slot = OPEN, path: str = ""):
        super().__init__(None, type_safe=False, convert_dict=False, sort_keys=False, allow_dotted_keys=slot == OPEN)
        object.__setattr__(self, "_slot", slot)
        object.__setattr__(self, "_path", path)
        if slot.section is not None:
            for name, default in unfreeze(slot.section()).items():
                self[name] = default
        for name, value in (initial or {}).items():
            self[name] = value

    def __setitem__(self, key: str, value: object) -> None:
        path = join(self._path, key)
        slot = child(self._slot, key, path)
        if not isinstance(key, str):
            raise FieldError(path, "is not a name", "Use text as the key.")
        if isinstance(value, FieldReference):
            value = value.get()
        if slot.is_container:
            if not isinstance(value, Mapping | ConfigDict):
                raise _not_a_dict(slot, value, path)
            value = Draft(value, slot=slot, path=path)
        else:
            value = check_value(slot, value, path)
            if isinstance(value, dict) and all(isinstance(name, str) for name in value):
                value = Draft({str(name): item for name, item in value.items()}, slot=OPEN, path=path)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if self._slot.section is not None and key in slots(self._slot.section):
            advice = "Every config has this field. Assign another value, or leave it out to keep its default."
            raise FieldError(join(self._path, key), "cannot be deleted", advice)
        super().__delitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            raise self._missing(name) from None

    def _missing(self, name: str) -> UnknownFieldError:
        path, section = join(self._path, name), self._slot.section
        if section is not None and not issubclass(section, Target):
            return unknown_field(path, section)
        return UnknownFieldError(
            path, "is read but was not set", f"Set here: {', '.join(map(str, self)) or 'nothing'}."
        )

    def __reduce__(self):
        return _restore, (self.to_dict(), self._slot, self._path)

    def copy_and_resolve_references(self, visit_map: dict | None = None) -> "Draft":
        """Returns a deep copy. References were already resolved at their assignment."""
        return _restore(self.to_dict(), self._slot, self._path)


def _restore(values: dict[str, object], slot: Slot, path: str) -> Draft:
    return Draft(values, slot=slot, path=path)


def _not_a_dict(slot: Slot, value: object, path: str) -> FieldError:
    if slot.section is not None:
        names = ", ".join(slots(slot.section))
        return FieldError(
            path, f"found {show(value)}, allowed is a section", f"Set one of its fields, or a dict of: {names}."
        )
    return FieldError(path, f"found {show(value)}, allowed is a dict", "Write {} for an empty one.")


def unfreeze(value: object) -> Any:
    """Converts a Config, a section or a value to plain dicts, as users write them.

    The arguments of a target become keys next to its fields.
    """
    if isinstance(value, Duration):
        return str(value)
    if dataclasses.is_dataclass(value):
        fields = {name: unfreeze(getattr(value, name)) for name in slots(type(value))}
        return {**fields, **unfreeze(value.arguments)} if isinstance(value, Target) else fields
    if isinstance(value, Mapping):
        return {key: unfreeze(item) for key, item in value.items()}
    return tuple(unfreeze(item) for item in value) if isinstance(value, tuple) else value


def defaults() -> Draft:
    """Returns a config in which every field has its default: `c = defaults(); c.train.total = "30 epochs"`."""
    return Draft(slot=ROOT)


def draft_of(config: Config | Mapping[str, object] | ConfigDict) -> Draft:
    """Returns a new Draft with the values of a config in any form.

    Raises:
        FieldError: a value that the schema does not allow.
    """
    return Draft(unfreeze(config) if isinstance(config, Config) else config, slot=ROOT)
