"""What model authors build from beside Flax NNX."""

from engine.layers.dropout import Dropout, fold_in

__all__ = ["Dropout", "fold_in"]
