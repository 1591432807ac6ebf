"""Suggests a learning rate and a batch size, each from a short measurement with its curve.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.tuning.batch_sizes import BatchSizes, batch_size, batch_size_of_run
    from engine.tuning.learning_rates import LearningRates, learning_rate
    from engine.tuning.noise import NoiseScale
    from engine.tuning.range_curve import RangeCurve

__all__ = [
    "BatchSizes",
    "LearningRates",
    "NoiseScale",
    "RangeCurve",
    "batch_size",
    "batch_size_of_run",
    "learning_rate",
]

_MODULES = {
    "engine.tuning.batch_sizes": ("BatchSizes", "batch_size", "batch_size_of_run"),
    "engine.tuning.learning_rates": ("LearningRates", "learning_rate"),
    "engine.tuning.noise": ("NoiseScale",),
    "engine.tuning.range_curve": ("RangeCurve",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
