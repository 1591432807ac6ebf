"""Layers and functions for models, in addition to those of Flax NNX."""

from engine.layers.attention import attention
from engine.layers.dense import Dense
from engine.layers.dropout import Dropout, fold_in
from engine.layers.embedding import Embed
from engine.layers.experts import Experts
from engine.layers.gated import swiglu
from engine.layers.loss import cross_entropy
from engine.layers.norm import RMSNorm
from engine.layers.remat import checkpoint, remat
from engine.layers.rotary import rotary_angles, rotate
from engine.layers.stack import Stack
from engine.parallel.layout import constrain

__all__ = [
    "Dense",
    "Dropout",
    "Embed",
    "Experts",
    "RMSNorm",
    "Stack",
    "attention",
    "checkpoint",
    "constrain",
    "cross_entropy",
    "fold_in",
    "remat",
    "rotary_angles",
    "rotate",
    "swiglu",
]
