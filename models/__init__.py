"""Example models: Flax NNX modules, their Tasks and their datasets, independent of the mesh."""
