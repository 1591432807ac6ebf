"""Rematerialisation: what a layer computes again in the backward pass instead of keeping it.

Owns: the choice that `train.remat` names, and the names of values that the choice can speak of. Does not own: which
layers it is applied to (`stack.py` does it for each of its layers).

Terms. *none*: keep all. *full*: keep a layer's inputs only. *dots*: keep the products with weights too. *save:a,b*:
keep the values named a and b too. *offload:a,b*: keep those in the memory of the host.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from engine.parallel.layout import NAMED, current
from engine.parallel.memory import HOST_MEMORY, check_host_memory, device_memory

POLICIES = jax.checkpoint_policies
CARRY = "carry of a stack"  # the name of what each layer of a stack is given, which is always kept


def checkpoint(x: Any, name: str) -> Any:
    """Returns `x` under a name that `train.remat=save:NAME` and `offload:NAME` can choose."""
    current().used.add(NAMED + name)
    return checkpoint_name(x, name)


def remat(function: Callable[..., Any], *, in_scan: bool = False) -> Callable[..., Any]:
    """Returns the function with what `train.remat` of the layout in force says of its backward pass.

    Args:
        function: of pytrees of arrays.
        in_scan: it is called in the body of a `jax.lax.scan`, where no compiler merges the second computation with
            the first.

    Raises:
        ConfigError: offload, where a device reads no memory of its host.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        layout = current()
        layout.used.add("remat")
        if layout.remat == "none":
            return function(*args)
        return jax.checkpoint(function, policy=_policy(layout.remat), prevent_cse=not in_scan)(*args)

    return call


def remat_slices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of a `jax.lax.scan` with what it cuts out of larger arrays not kept, but cut out again.

    Where it applies layers that are computed again, what they keep is kept: a policy around others takes their place.
    """
    choice = current().remat
    return jax.checkpoint(function, policy=_not_sliced if choice == "none" else _policy(choice), prevent_cse=False)


def _not_sliced(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of jax.checkpoint: all is kept but slices."""
    return primitive.name not in ("dynamic_slice", "squeeze")


def _policy(choice: str) -> Any:
    """What is kept, as JAX says it."""
    kind, _, names = choice.partition(":")
    if kind == "full":
        return POLICIES.save_only_these_names(CARRY)
    if kind == "dots":
        return POLICIES.save_from_both_policies(
            POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names(CARRY)
        )
    if kind == "save":
        return POLICIES.save_only_these_names(CARRY, *names.split(","))
    mesh = current().mesh
    check_host_memory(mesh, "train.remat")
    return POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[CARRY],
        names_which_can_be_offloaded=names.split(","),
        offload_src=device_memory(mesh),
        offload_dst=HOST_MEMORY,
    )
