"""Layers and functions for models, in addition to those of Flax NNX.

Names are imported on first use, so that a model without these layers loads none of them. `_MODULES` repeats the imports
below, which only type checkers execute; a test compares the two. A file is not named like a public name: importing the
file would replace the name.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.layers.dense import Dense, project
    from engine.layers.dot_product_attention import attention
    from engine.layers.dropout import Dropout, fold_in
    from engine.layers.embedding import Embed
    from engine.layers.experts import Experts
    from engine.layers.gated import swiglu
    from engine.layers.loss import cross_entropy
    from engine.layers.norm import RMSNorm
    from engine.layers.rematerialization import checkpoint, remat
    from engine.layers.rotary import RotaryScaling, rotary_angles, rotate
    from engine.layers.stack import Stack
    from engine.parallel.layout import constrain

__all__ = [
    "Dense",
    "Dropout",
    "Embed",
    "Experts",
    "RMSNorm",
    "RotaryScaling",
    "Stack",
    "attention",
    "checkpoint",
    "constrain",
    "cross_entropy",
    "fold_in",
    "project",
    "remat",
    "rotary_angles",
    "rotate",
    "swiglu",
]

_MODULES = {
    "engine.layers.dense": ("Dense", "project"),
    "engine.layers.dot_product_attention": ("attention",),
    "engine.layers.dropout": ("Dropout", "fold_in"),
    "engine.layers.embedding": ("Embed",),
    "engine.layers.experts": ("Experts",),
    "engine.layers.gated": ("swiglu",),
    "engine.layers.loss": ("cross_entropy",),
    "engine.layers.norm": ("RMSNorm",),
    "engine.layers.rematerialization": ("checkpoint", "remat"),
    "engine.layers.rotary": ("RotaryScaling", "rotary_angles", "rotate"),
    "engine.layers.stack": ("Stack",),
    "engine.parallel.layout": ("constrain",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
