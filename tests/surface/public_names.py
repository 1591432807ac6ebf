"""The public names of the engine: those of `__all__` of its public modules, and others that the reference documents."""

import importlib
import re
from typing import Any

import engine
import engine.config
import engine.layers
import engine.metrics
import engine.plot
import engine.readers
from tests.surface.own import ROOT
from tests.surface.signatures import module_text

MODULES = (engine, engine.config, engine.layers, engine.metrics, engine.plot, engine.readers)


def texts() -> dict[str, str]:
    """Returns the text of each public module by name; "documented" holds the names that only the reference lists."""
    names = {module.__name__: {name: getattr(module, name) for name in module.__all__} for module in MODULES}
    names["documented"] = _documented({f"{module}.{name}" for module in names for name in names[module]})
    public = {name for objects in names.values() for name in objects}
    return {module: module_text(objects, public) for module, objects in names.items()}


def _documented(listed: set[str]) -> dict[str, Any]:
    """Returns name -> object of the names that `docs/reference/` imports from modules that are not public."""
    found = {}
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for path in re.findall(r"^- `(engine[\w.]*)`: ", page.read_text(encoding="utf-8"), re.MULTILINE):
            if path not in listed:
                module, _, name = path.rpartition(".")
                found[name] = getattr(importlib.import_module(module), name)
    return found
