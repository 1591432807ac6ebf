"""Feature pyramid (Lin et al. 2017): maps of one width at all strides of a backbone, with the names of torchvision."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from engine import TaskError, hub


def enlarged(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Returns a map `[batch, rows, columns, width]` by nearest neighbours, as torchvision does for any ratio."""
    down, across = (jnp.arange(to) * size // to for to, size in zip((rows, columns), x.shape[1:3], strict=True))
    return x[:, down][:, :, across]


class FeaturePyramid(nnx.Module):
    """Adds to each map what the next coarser one has found, from the coarsest to the finest.

    Args:
        widths: stride -> features of a map of the backbone, such as those of `catalog.widths`.
        width: features of all results.
        rngs: random keys for the initial values.

    Raises:
        TaskError: there are no maps.
    """

    pretrained: ClassVar = hub.Names({r"(inner|layer)/(\d+)": r"\1_blocks.\2.0"})

    def __init__(self, widths: Mapping[int, int], width: int = 256, *, rngs: nnx.Rngs):
        if not widths:
            raise TaskError("FeaturePyramid: widths is empty. Give the features of each stride, such as {8: 128}.")
        self.strides = tuple(sorted(widths))
        sizes = [widths[stride] for stride in self.strides]
        uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")  # torchvision's kaiming_uniform_(a=1)
        self.inner = nnx.List([nnx.Conv(size, width, (1, 1), kernel_init=uniform, rngs=rngs) for size in sizes])
        self.layer = nnx.List([nnx.Conv(width, width, (3, 3), kernel_init=uniform, rngs=rngs) for _ in sizes])

    def __call__(self, maps: Mapping[int, jax.Array]) -> dict[int, jax.Array]:
        """Returns stride -> map `[batch, rows / stride, columns / stride, width]`.

        Args:
            maps: stride -> map `[batch, rows / stride, columns / stride, features]`, such as the `features` of a
                backbone. Other strides than those of `widths` are left out.
        """
        found, above = {}, None
        for stride, inner, layer in reversed(list(zip(self.strides, self.inner, self.layer, strict=True))):
            x = inner(maps[stride])
            above = x if above is None else x + enlarged(above, x.shape[1], x.shape[2])
            found[stride] = layer(above)
        return dict(sorted(found.items()))
