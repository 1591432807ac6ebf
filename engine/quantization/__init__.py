"""Quantization of trained models: weights and activations in fewer bits, what each layer costs, training for it.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.quantization.after_training import Quantized, quantize
    from engine.quantization.training import aware

__all__ = ["Quantized", "aware", "quantize"]

_MODULES = {
    "engine.quantization.after_training": ("Quantized", "quantize"),
    "engine.quantization.training": ("aware",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
