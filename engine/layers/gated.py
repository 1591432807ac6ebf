"""The gated activation of a feed-forward layer."""

import jax

from engine.layers.platforms import activations


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns silu(gate) * up (Shazeer 2020), for arrays of one shape, in their dtype."""
    return activations.swiglu(gate, up)
