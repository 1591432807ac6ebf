"""Calls a function of whole examples on the examples of each device, without any exchange between devices.

A loop whose end depends on values would otherwise ask all devices after each round whether one of them continues.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from engine.layers.manual import on_each_device
from engine.parallel import layout


def per_device(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Returns `function(*arrays)` for arrays `[batch, ...]`, called with the examples of each device; no gradient."""
    arrays = tuple(jax.lax.stop_gradient(x) for x in arrays)
    here = layout.current()
    axes = here.axes("batch", arrays[0].shape[0])
    if not axes:
        return function(*arrays)
    rows = PartitionSpec(axes)
    return on_each_device(here, function, in_specs=(rows,) * len(arrays), out_specs=rows)(*arrays)
