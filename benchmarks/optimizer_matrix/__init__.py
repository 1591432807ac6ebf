"""Table of the optimizers: references, meshes, resume, other settings, bytes of the state, time of the update."""
