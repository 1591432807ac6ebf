"""The public names of the engine: those of `__all__` of its public modules, and others that pages document."""

import importlib
import importlib.util
import re
from typing import Any

import engine
import engine.adapters
import engine.augmentation
import engine.bundles
import engine.config
import engine.hub
import engine.layers
import engine.metrics
import engine.optimizers
import engine.perception
import engine.plot
import engine.quantization
import engine.readers
import engine.sweeps
import engine.tuning
from tests.surface.own import ROOT
from tests.surface.signatures import module_text

MODULES = (
    engine,
    engine.adapters,
    engine.augmentation,
    engine.bundles,
    engine.config,
    engine.hub,
    engine.layers,
    engine.metrics,
    engine.optimizers,
    engine.perception,
    engine.plot,
    engine.quantization,
    engine.readers,
    engine.sweeps,
    engine.tuning,
)


def texts() -> dict[str, str]:
    """Returns the text of each public module by name; "documented" holds the others that pages of the docs name."""
    names = {module.__name__: {name: getattr(module, name) for name in module.__all__} for module in MODULES}
    names["documented"] = _documented({f"{module}.{name}" for module in names for name in names[module]})
    public = {name for objects in names.values() for name in objects}
    return {module: module_text(objects, public) for module, objects in names.items()}


def _documented(listed: set[str]) -> dict[str, Any]:
    """Returns name -> object of what pages list or import from modules that are not public."""
    found = {}
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        text = page.read_text(encoding="utf-8")
        paths = re.findall(r"^- `(engine[\w.]*)`: ", text, re.MULTILINE) if page.parent.name == "reference" else []
        for module, names in re.findall(r"^ *from (engine[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            paths += [f"{module}.{name.partition(' as ')[0].strip()}" for name in names.split(",")]
        for path in paths:
            module, _, name = path.rpartition(".")
            if path not in listed and not _is_module(path):
                found[name] = getattr(importlib.import_module(module), name)
    return found


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # the name before the last dot is a class or a function
        return False
