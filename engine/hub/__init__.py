"""Weights of other programs: safetensors files of timm and torchvision, read and written.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two. A file is not named like a public name: importing the file would replace the name.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.hub.names import Names
    from engine.hub.warm_start import load
    from engine.hub.writing import save

__all__ = ["Names", "load", "save"]

_MODULES = {
    "engine.hub.names": ("Names",),
    "engine.hub.warm_start": ("load",),
    "engine.hub.writing": ("save",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
