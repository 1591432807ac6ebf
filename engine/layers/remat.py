"""Rematerialisation: what a layer computes again in the backward pass instead of keeping it.

The choices of `train.remat` say what is kept beside the input of each layer of a stack. *none*: everything. *full*:
nothing. *dots*: products with weights. *save:a,b*: the values named a and b. *offload:a,b*: those, in host memory.
"""

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

from engine.parallel.layout import NAMED, current
from engine.parallel.memory import HOST_MEMORY, check_host_memory, device_memory

POLICIES = jax.checkpoint_policies
CARRY = "carry of a stack"  # the name of the input of each layer of a stack, which is always kept

type Policy = Callable[..., bool]
"""A policy of `jax.checkpoint`: `(primitive, *avals, **params)` -> whether the result is kept."""


def checkpoint[T](x: T, name: str) -> T:
    """Returns `x` under a name that `train.remat=save:NAME` and `offload:NAME` can choose."""
    current().used.add(NAMED + name)
    return checkpoint_name(x, name)


def remat[**P, R](function: Callable[P, R], *, in_scan: bool = False) -> Callable[P, R]:
    """Returns the function with the backward pass that `train.remat` of the layout in force asks for.

    Args:
        function: of pytrees of arrays.
        in_scan: it is called in the body of a `jax.lax.scan`, where no compiler merges the second computation with
            the first.

    Raises:
        ConfigError: offload, where a device cannot read the memory of its host.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        layout = current()
        layout.used.add("remat")
        if layout.remat == "none":
            return function(*args, **kwargs)
        return jax.checkpoint(function, policy=_policy(layout.remat), prevent_cse=not in_scan)(*args, **kwargs)

    return call


def remat_slices[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Returns the body of a `jax.lax.scan`, which slices its inputs again in the backward pass instead of keeping them.

    Layers inside that are computed again keep what `train.remat` says: an outer policy replaces theirs, so this one
    includes it.
    """
    choice = current().remat
    return jax.checkpoint(function, policy=_not_sliced if choice == "none" else _policy(choice), prevent_cse=False)


def _not_sliced(primitive: Primitive, *_: object, **__: object) -> bool:
    """A policy that keeps everything but slices."""
    return primitive.name not in ("dynamic_slice", "squeeze")


def _policy(choice: str) -> Policy:
    """Returns the policy of `jax.checkpoint` for a choice of `train.remat`."""
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
