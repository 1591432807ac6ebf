"""Rematerialisation: layers recompute values in the backward pass instead of keeping them.

`train.remat` chooses what is kept in addition to the input of each layer of a stack: *none* everything, *full* nothing,
*dots* products with weights, *save:a,b* the values named a and b, *offload:a,b* these values in host memory. *dots*,
and the name "attention", also keep what the backward pass of an attention kernel needs, so that the kernel does not run
twice. *offload* does not keep that of cuDNN.
"""

import contextvars
import functools
from collections.abc import Callable, Collection

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

from engine.parallel.layout import NAMED, current
from engine.parallel.memory import HOST_MEMORY, check_host_memory, device_memory

POLICIES = jax.checkpoint_policies
CARRY = "carry of a stack"  # name of the input of each layer of a stack, which is always kept
ATTENTION = "attention"  # name that models give the result of attention
KERNEL = "attention kernel"  # name of what the backward pass of splash attention needs of the forward pass
SMALL = "small"  # name of what `recomputed` keeps of its function, such as one number for each position
CUDNN = "dot_product_attention_fwd_wrapper"  # primitive of cuDNN's forward pass, whose results have no name

type Policy = Callable[..., bool]
"""A policy of `jax.checkpoint`: `(primitive, *avals, **params) -> whether the result is kept`."""


def checkpoint[T](x: T, name: str) -> T:
    """Returns `x` with a name, by which `train.remat=save:NAME` and `offload:NAME` select it."""
    current().used.add(NAMED + name)
    return checkpoint_name(x, name)


def policies(used: Collection[str]) -> list[str]:
    """Returns the values of `train.remat` among which a run may choose: those that keep most first, and none on a host.

    Args:
        used: `Layout.used` of the traced model.
    """
    if "remat" not in used:
        return ["none"]
    names = sorted(name.removeprefix(NAMED) for name in used if name.startswith(NAMED))
    return ["none", "dots", *([f"save:{','.join(names)}"] if names else []), "full"]


def remat[**P, R](function: Callable[P, R], *, in_scan: bool = False) -> Callable[P, R]:
    """Wraps a function so that its backward pass follows `train.remat` of the active layout.

    Args:
        function: function of pytrees of arrays.
        in_scan: whether it is called in the body of a `jax.lax.scan`, where XLA does not merge the recomputation with
            the first computation.

    Raises:
        ConfigError: train.remat is offload, and the devices cannot read host memory.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        layout = current()
        layout.used.add("remat")
        if layout.remat == "none":
            return function(*args, **kwargs)
        return jax.checkpoint(function, policy=_policy(layout.remat), prevent_cse=not in_scan)(*args, **kwargs)

    return call


_in_slices = contextvars.ContextVar("_in_slices", default=False)  # whether `remat_slices` traces its function


def remat_slices[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Wraps the body of a `jax.lax.scan` so that the backward pass slices the inputs again instead of keeping slices.

    An outer policy replaces that of the layers inside, so this policy includes `train.remat`.
    """
    choice = current().remat

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _in_slices.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _in_slices.reset(token)

    return jax.checkpoint(call, policy=_not_sliced if choice == "none" else _policy(choice), prevent_cse=False)


def recomputed(function: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """Returns `function(*args)`; the backward pass keeps the arguments, and values with the name SMALL.

    Within `remat_slices` the outer policy would replace that of a `jax.checkpoint`, and decide on each operation
    without knowing its layer. So the function has a gradient of its own there, which keeps the arguments alone, and no
    forward-mode derivative (`jax.jvp`).
    """
    if not _in_slices.get():
        return jax.checkpoint(function, policy=POLICIES.save_only_these_names(SMALL), prevent_cse=False)(*args)
    call = jax.custom_vjp(function)
    call.defvjp(lambda *args: (function(*args), args), lambda args, d_y: jax.vjp(function, *args)[1](d_y))
    return call(*args)


def _not_sliced(primitive: Primitive, *_: object, **__: object) -> bool:
    """Policy that keeps everything but slices."""
    return primitive.name not in ("dynamic_slice", "squeeze")


def _policy(choice: str) -> Policy:
    """Returns the policy of `jax.checkpoint` for a choice of `train.remat`."""
    kind, _, text = choice.partition(":")
    names = text.split(",") if text else []
    if kind == "full":
        return POLICIES.save_only_these_names(CARRY)
    if kind == "dots":
        named = POLICIES.save_only_these_names(CARRY, KERNEL)
        return _with_cudnn(POLICIES.save_from_both_policies(POLICIES.dots_with_no_batch_dims_saveable, named))
    keeps_kernel = ATTENTION in names
    names += [KERNEL] if keeps_kernel else []
    if kind == "save":
        policy = POLICIES.save_only_these_names(CARRY, *names)
        return _with_cudnn(policy) if keeps_kernel else policy
    mesh = current().mesh
    check_host_memory(mesh, "train.remat")
    return POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[CARRY],
        names_which_can_be_offloaded=names,
        offload_src=device_memory(mesh),
        offload_dst=HOST_MEMORY,
    )


def _with_cudnn(policy: Policy) -> Policy:
    """Returns a policy that also keeps the results of cuDNN's forward pass."""
    return lambda primitive, *avals, **params: primitive.name == CUDNN or policy(primitive, *avals, **params)
