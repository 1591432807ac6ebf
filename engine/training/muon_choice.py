"""Chooses the matrices that Muon orthogonalises, by their uses in the traced loss (`parameter_uses.py`)."""

import contextlib
import dataclasses
import math

import jax

from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.data.context import call
from engine.parallel.layout import with_layout
from engine.parallel.mesh import one_device
from engine.training.arrays import Arrays, cast
from engine.training.muon import EMBEDDING, NAMED_OUTER, OUTPUT, SMALL, MuonChoice
from engine.training.objective import means_of
from engine.training.parameter_uses import Matrix, uses_of
from engine.training.state import initial_state
from engine.training.step_spec import StepSpec
from engine.training.task import author_errors_reported, check_loss
from engine.training.update import has_own_update, own_update


def choose(spec: StepSpec, batch: Batch) -> MuonChoice:
    """Returns the choice for the trained parameters; traces the loss, or the Task's own update.

    As in `compile/flops.py`, it traces for one device, so that the choice is the same on every mesh. Where that fails,
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
        return _choose(dataclasses.replace(spec, layout=layout), batch)
    return _choose(dataclasses.replace(spec, layout=dataclasses.replace(layout, mesh=spec.mesh)), batch)


def _choose(spec: StepSpec, batch: Batch) -> MuonChoice:
    """Returns the choice as `choose`, with a trace for the layout of `spec`."""
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
    uses = uses_of(jaxpr, paths, range(first, len(jaxpr.invars)), only_first=is_update)
    matrices, reasons = {}, {}
    for path in spec.model.trained:
        use, shape = uses[path], spec.model.params[path].shape
        if not isinstance(use, Matrix):
            reasons[path] = use
        elif NAMED_OUTER in spec.model.names.get(path, ()):
            reasons[path] = OUTPUT if use.is_last else EMBEDDING
        elif min(math.prod(shape[i] for i in found) for found in (use.reduction, use.output)) == 1:
            reasons[path] = SMALL
        elif use.is_last:
            reasons[path] = OUTPUT
        else:
            matrices[path] = (use.reduction, use.output)
    return MuonChoice(matrices, reasons)
