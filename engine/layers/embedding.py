"""An embedding layer whose table may be split over the mesh.

A table whose features are split over devices of the rows, as with `mesh.fsdp`, is looked up where it is stored: each
device looks up its features for the rows of all these devices, and an all-to-all gives every device its own rows. The
gradient of the table needs no sum over these devices. With fewer vocabulary entries than ids on a device, gathering the
table moves less.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from engine.parallel import layout


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
        self.table = nnx.Param(
            init(rngs.params(), (count, features)), logical_axes=("vocab", "embed"), role="embedding"
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns `[..., features]` for integer ids `[...]`."""
        return _look_up(self.table.get_value(), ids)

    @property
    def kernel(self) -> jax.Array:
        """The table as a kernel `[features, count]`."""
        return self.table.get_value().T


def _look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    here = layout.current()
    rows = here.axes("batch", ids.shape[0]) if ids.ndim else ()
    owners = here.axes("embed", table.shape[1])
    own_ids = ids.size // math.prod(here.size(axis) for axis in rows)
    is_split_like_rows = owners and set(owners) <= set(rows)
    if not is_split_like_rows or own_ids >= len(table) or layout.in_stage():
        # A table that is split over fsdp is gathered before the lookup, like other parameters before their use.
        return here.constrain(table, "vocab", None)[ids]

    # Other devices of the rows sum the gradient in float32: XLA:CPU cannot sum half precision in a manual computation.
    summed, dtype = set(owners) < set(rows), table.dtype
    table = table.astype(jnp.promote_types(dtype, jnp.float32)) if summed else table

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        y = table.astype(dtype)[lax.all_gather(ids, owners, axis=0, tiled=True)]
        return lax.all_to_all(y, owners, 0, y.ndim - 1, tiled=True)

    by_rows, by_features = PartitionSpec(rows), PartitionSpec(None, owners)
    return jax.shard_map(
        local,
        mesh=here.inner_mesh,
        axis_names=set(rows),
        in_specs=(by_features, by_rows),
        out_specs=by_rows,
        check_vma=False,
    )(table, ids)
