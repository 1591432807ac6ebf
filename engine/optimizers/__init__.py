"""Optimizers that Optax lacks, for `optimizer.target` of a config.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.optimizers.eigenbases import soap
    from engine.optimizers.orthogonalized import muon

__all__ = [
    "muon",
    "soap",
]

_MODULES = {
    "engine.optimizers.eigenbases": ("soap",),
    "engine.optimizers.orthogonalized": ("muon",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
