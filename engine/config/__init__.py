"""Config of a run: its schema, loading, validation and printing. Imports no jax.

Names are imported on first use, so that importing `engine.base.errors` does not load ml_collections. `_MODULES`
repeats the imports below, which only type checkers execute; a test compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.base.duration import Duration
    from engine.base.errors import ConfigError
    from engine.config.draft import defaults
    from engine.config.help import help_text
    from engine.config.loading import load
    from engine.config.schema import Config
    from engine.config.text import from_text, to_text
    from engine.config.validation import validate

__all__ = [
    "Config",
    "ConfigError",
    "Duration",
    "defaults",
    "from_text",
    "help_text",
    "load",
    "to_text",
    "validate",
]

_MODULES = {
    "engine.config.draft": ("defaults",),
    "engine.base.duration": ("Duration",),
    "engine.base.errors": ("ConfigError",),
    "engine.config.help": ("help_text",),
    "engine.config.loading": ("load",),
    "engine.config.schema": ("Config",),
    "engine.config.text": ("from_text", "to_text"),
    "engine.config.validation": ("validate",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
