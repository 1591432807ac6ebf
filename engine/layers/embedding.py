"""An embedding layer whose table may be split over the mesh."""

import jax
from flax import nnx

from engine.parallel.layout import constrain


class Embed(nnx.Module):
    """Looks up a vector for each id. The table may also be the kernel of the last layer (tied embedding).

    Args:
        count: number of ids, which are 0 to count - 1.
        features: size of a vector.
        stddev: standard deviation of the initial values.
        rngs: random keys for the initial values.
    """

    def __init__(self, count: int, features: int, *, stddev: float = 0.02, rngs: nnx.Rngs):
        init = nnx.initializers.normal(stddev)
        self.table = nnx.Param(init(rngs.params(), (count, features)), logical_axes=("vocab", "embed"))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns `[..., features]` for integer ids `[...]`."""
        # A table that is split over fsdp is gathered before the lookup, like other parameters before their use.
        return constrain(self.table.get_value(), "vocab", None)[ids]

    @property
    def kernel(self) -> jax.Array:
        """The table as a kernel `[features, count]`."""
        return self.table.get_value().T
