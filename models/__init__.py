"""Example models: each file has a Flax NNX module, its Task and its datasets, and is independent of the mesh."""
