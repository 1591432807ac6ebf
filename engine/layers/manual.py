"""Calls a function on the arrays of each device, also within another `jax.shard_map` such as a stage of a pipeline."""

from collections.abc import Callable

import jax

from engine.base.types import PyTree
from engine.parallel.layout import Layout


def on_each_device[**P](
    here: Layout, function: Callable[P, jax.Array], *, in_specs: PyTree, out_specs: PyTree, check_vma: bool = False
) -> Callable[P, jax.Array]:
    """Returns `function`, called on the part of its arguments that each device has.

    All mesh axes that are not manual yet are manual within `function`, as kernels require. Its gradient is that of each
    device's call.

    Args:
        here: the active layout.
        function: function of arrays.
        in_specs: PartitionSpec of each argument, over the axes that are not manual yet.
        out_specs: PartitionSpec of the result.
        check_vma: whether JAX checks over which axes values vary. Kernels do not declare that. Without the check,
            gradients are also summed over axes that split nothing.
    """
    mesh = here.inner_mesh
    inside = set(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.shard_map(
        function,
        mesh=mesh,
        axis_names=set(mesh.axis_names) - inside,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=check_vma and not inside,
    )
