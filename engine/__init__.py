"""Convoy: one training engine for every model team.

The author API, loaded on first use so that `import engine.config` loads no jax.
"""

import importlib
from typing import Any

_NAMES = {
    "Task": "engine.training.task",
    "Loss": "engine.metrics",
    "Mean": "engine.metrics",
    "ArraySource": "engine.data.source",
    "Source": "engine.data.source",
    "Packed": "engine.data.packing",
    "Mixture": "engine.data.mixture",
    "layers": "engine.layers",
    "Trainer": "engine.trainer",
    "Summary": "engine.observe.report",
    "train": "engine.entry",
    "evaluate": "engine.entry",
    "local_path": "engine.config.mounts",
    "ConvoyError": "engine.config.errors",
    "DataError": "engine.config.errors",
    "TaskError": "engine.config.errors",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    module = importlib.import_module(_NAMES[name])
    value = module if module.__name__ == f"engine.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
