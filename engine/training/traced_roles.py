"""Finds the roles of parameters, and the dimensions of matrices, by their uses in the loss (`parameter_uses.py`)."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import jax

from engine.base.types import PyTree
from engine.config.setting import CONVOLUTION, EMBEDDING, HEAD, MATRIX
from engine.data.batch import Batch
from engine.data.context import call
from engine.parallel.layout import with_layout
from engine.parallel.mesh import one_device
from engine.training.arrays import Arrays, cast
from engine.training.objective import means_of
from engine.training.parameter_uses import CONVOLUTION as CONVOLVED
from engine.training.parameter_uses import LOOKED_UP, TIED, Matrix, Use, uses_of
from engine.training.roles import DECLARED, NO_MATRIX, VOCABULARY, Leaf, Roles, by_shape, own_dimensions
from engine.training.state import initial_state
from engine.training.step_spec import StepSpec
from engine.training.task import author_errors_reported, check_loss
from engine.training.update import has_own_update, own_update

LAST, HIDDEN = "no other matrix follows", "multiplied with activations"
"""Reasons for a head, and for a matrix that is not one."""


def traced_roles(spec: StepSpec, batch: Batch) -> Roles:
    """Returns the roles of the trained parameters; traces the loss, or the Task's own update.

    As in `compile/flops.py`, it traces for one device, so that the roles are the same on every mesh. Where that fails,
    the Task needs its mesh, which is used then.

    Args:
        spec: parts of the step. Its optimizer is not called.
        batch: abstract global batch.

    Raises:
        TaskError: the loss is not valid.
    """
    layout = dataclasses.replace(
        spec.layout, mesh=one_device(spec.mesh), remat="none", counts_flops=True, offload_optimizer=False, used=set()
    )
    with contextlib.suppress(Exception):  # the second trace raises the error of a loss that is wrong
        return _roles(dataclasses.replace(spec, layout=layout), batch)
    return _roles(dataclasses.replace(spec, layout=dataclasses.replace(layout, mesh=spec.mesh)), batch)


def _roles(spec: StepSpec, batch: Batch) -> Roles:
    """Returns the roles as `traced_roles`, with a trace for the layout of `spec`."""
    uses = _uses(spec, batch)
    of, reasons, dimensions = {}, {}, {}
    for path in spec.model.trained:
        declared, x, names = spec.model.roles.get(path), spec.model.params[path], spec.model.names.get(path, ())
        of[path], reasons[path] = _role(path, declared, uses[path], x, names)
        if isinstance(use := uses[path], Matrix) and of[path] in (MATRIX, HEAD):
            dimensions[path] = (use.reduction, use.output)
            if min(math.prod(x.shape[i] for i in found) for found in dimensions[path]) == 1:
                reasons[path] = NO_MATRIX
    return Roles(of, reasons, dimensions, is_traced=True)


def _role(path: str, declared: str | None, use: Use, x: Leaf, names: Sequence[str | None]) -> tuple[str, str]:
    """Returns the role of a parameter, and what decided."""
    if declared not in (None, MATRIX):
        return declared, use if isinstance(use, str) else DECLARED
    if isinstance(use, Matrix):
        if use.is_last:
            return HEAD, LAST
        return (EMBEDDING, f"logical axis {VOCABULARY}") if VOCABULARY in names else (MATRIX, HIDDEN)
    if declared is not None:
        return declared, use
    known = {LOOKED_UP: EMBEDDING, TIED: EMBEDDING, CONVOLVED: CONVOLUTION}
    return known.get(use) or by_shape(path, own_dimensions(x, names), EMBEDDING), use


def _uses(spec: StepSpec, batch: Batch) -> dict[str, Use]:
    """Returns path -> use of each parameter."""
    spec = dataclasses.replace(spec, accumulate=1, opt_shardings=None, reads=[])
    task, is_update = spec.task, has_own_update(spec.task)
    rows = len(batch.weight)

    def loss(params: Arrays, model_state: Arrays, key: jax.Array, batch: Batch) -> PyTree:
        module = spec.model.module(cast(params, spec.compute_dtype), model_state, key)
        spec.model.train(module)
        keys = jax.random.split(key, rows)
        examples = cast(batch.examples, spec.compute_dtype, task.full_precision)
        with author_errors_reported(task, "loss", examples):
            result = call(task.loss, module, examples, keys, context=spec.context(0, keys))
        check_loss(task, result, rows)
        return means_of(result)

    def update(params: Arrays, model_state: Arrays, key: jax.Array, batch: Batch) -> PyTree:
        with author_errors_reported(task, "update", batch.examples):
            state = initial_state(task, spec.model, spec.tx, 0, ema=False)
            state = dataclasses.replace(state, params=params, model_state=model_state)
            return own_update(spec, state, batch, key, state.step)

    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (spec.model.params, spec.model.model_state, batch)
    )
    args = (*args[:2], jax.random.key(0), args[2])
    jaxpr = jax.make_jaxpr(with_layout(spec.layout, update if is_update else loss))(*args).jaxpr
    first = len(jaxpr.invars) - len(jax.tree.leaves(batch))
    paths = dict(enumerate(sorted(spec.model.params)))
    return uses_of(jaxpr, paths, range(first, len(jaxpr.invars)), only_first=is_update)
