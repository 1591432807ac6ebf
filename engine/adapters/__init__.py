"""Adapters: small trained matrices that are added to the frozen kernels of a model, chosen in the config.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.adapters.merge import merged
    from engine.adapters.peft import load_peft, save_peft
    from engine.adapters.settings import Adapter
    from engine.adapters.task import adapted

__all__ = ["Adapter", "adapted", "load_peft", "merged", "save_peft"]

_MODULES = {
    "engine.adapters.merge": ("merged",),
    "engine.adapters.peft": ("load_peft", "save_peft"),
    "engine.adapters.settings": ("Adapter",),
    "engine.adapters.task": ("adapted",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
