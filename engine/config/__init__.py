"""The config of a run: its schema, how it is written, loaded, checked and printed. Imports no jax.

Names load on first use, so that `engine.config.errors` alone does not load ml_collections. Editors and type checkers
read the imports below; `_MODULES` says the same at run time, and a test compares the two.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.dev_run import tiny
    from engine.config.draft import Draft, defaults
    from engine.config.duration import Duration
    from engine.config.errors import ConfigError, ConvoyError
    from engine.config.help import help_text
    from engine.config.loading import load
    from engine.config.schema import Config
    from engine.config.target import build
    from engine.config.text import flatten, from_text, to_text
    from engine.config.validation import validate

__all__ = [
    "Config",
    "ConfigError",
    "ConvoyError",
    "Draft",
    "Duration",
    "build",
    "defaults",
    "flatten",
    "from_text",
    "help_text",
    "load",
    "tiny",
    "to_text",
    "validate",
]

_MODULES = {
    "engine.config.dev_run": ("tiny",),
    "engine.config.draft": ("Draft", "defaults"),
    "engine.config.duration": ("Duration",),
    "engine.config.errors": ("ConfigError", "ConvoyError"),
    "engine.config.help": ("help_text",),
    "engine.config.loading": ("load",),
    "engine.config.schema": ("Config",),
    "engine.config.target": ("build",),
    "engine.config.text": ("flatten", "from_text", "to_text"),
    "engine.config.validation": ("validate",),
}


def __getattr__(name: str) -> object:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'engine.config' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
