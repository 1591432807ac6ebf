"""Every field of a config: type, default and help text, and which of some values it accepts.

The help text does not state every rule, such as that of a mesh axis, so each field is also given the values of `TRIED`.
"""

import re
from typing import Any

from engine.config import ConfigError, defaults, help_text

TRIED: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 0.5, 1.5, 2**31, 2**40, "", "auto", "none", "cosine", "word", "a b", "a.b", "a/b",
    "save:a", "(", "0 steps", "1 steps", "1 epochs", "1 seconds", (), (1,), {},
)  # fmt: skip
ENTRY = "entry"  # name of the entry of each table


def text() -> str:
    """Returns the help of all fields, then a line for each field with the values that it accepts."""
    fields = help_text()
    paths = re.findall(r"^  ([\w.<>]+): .*? = ", fields, re.MULTILINE)
    return "\n".join([fields, "Accepted, of some values:", *(f"  {path}: {_accepted(path)}" for path in paths)]) + "\n"


def _accepted(path: str) -> str:
    section: Any = defaults()
    *sections, field = path.replace("<name>", ENTRY).split(".")
    for name in sections:
        if name == ENTRY:
            section[name] = {}
        section = section[name]
    return ", ".join(repr(value) for value in TRIED if _accepts(section, field, value))


def _accepts(section: Any, field: str, value: Any) -> bool:
    try:
        section[field] = value
    except ConfigError:
        return False
    return True
