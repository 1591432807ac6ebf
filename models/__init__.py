"""Models: each file holds a Flax NNX module, its Task and its datasets, and names no mesh."""
