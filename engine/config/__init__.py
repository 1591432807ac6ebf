"""The config of a run: its schema, how it is written, loaded, checked and printed. Imports no jax.

The names are loaded on first use, so that a module which needs only `engine.config.errors` or `engine.config.schema`
(the command line's `--help`, a worker) does not load ml_collections too.
"""

import importlib
from typing import Any

_NAMES = {
    "Config": "schema",
    "Draft": "draft",
    "Duration": "duration",
    "Period": "duration",
    "defaults": "draft",
    "tiny": "dev_run",
    "load": "loading",
    "validate": "validation",
    "flatten": "text",
    "from_text": "text",
    "to_text": "text",
    "help_text": "help",
    "identity_differences": "identity",
    "schedule_change": "identity",
    "build": "target",
    "check": "target",
    "resolve": "target",
    "ConvoyError": "errors",
    "ConfigError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "RunError": "errors",
    "ShardingError": "errors",
    "TaskError": "errors",
    "did_you_mean": "errors",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'engine.config' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"engine.config.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
