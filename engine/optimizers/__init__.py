"""Optimizers that Optax lacks, for `optimizer.target` of a config, and SAM for the `update` of a Task.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.optimizers.averages import schedule_free_adamw, schedule_free_sgd
    from engine.optimizers.blocks import adam_mini
    from engine.optimizers.eigenbases import soap
    from engine.optimizers.norms import adafactor, lamb
    from engine.optimizers.orthogonalized import muon
    from engine.optimizers.roots import shampoo
    from engine.optimizers.sharpness import sam_update
    from engine.optimizers.variance_reduced import mars

__all__ = [
    "adafactor",
    "adam_mini",
    "lamb",
    "mars",
    "muon",
    "sam_update",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "shampoo",
    "soap",
]

_MODULES = {
    "engine.optimizers.averages": ("schedule_free_adamw", "schedule_free_sgd"),
    "engine.optimizers.blocks": ("adam_mini",),
    "engine.optimizers.eigenbases": ("soap",),
    "engine.optimizers.norms": ("adafactor", "lamb"),
    "engine.optimizers.orthogonalized": ("muon",),
    "engine.optimizers.roots": ("shampoo",),
    "engine.optimizers.sharpness": ("sam_update",),
    "engine.optimizers.variance_reduced": ("mars",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
