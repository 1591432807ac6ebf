"""The program that measures parameters, gradients, updates and the noise of the gradient, for each parameter.

It computes the gradient of one batch as the train step does, in parts whose norms estimate the noise (McCandlish et al.
2018, arXiv:1812.06162, appendix A.1), and the update of the optimizer. It changes no state.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.base.types import PyTree
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.diagnosis.groups import Groups
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
from engine.parallel.schedule import row_unit
from engine.training.arrays import Arrays
from engine.training.gradients import Part, Shared, constrain, gradients, sum_gradients, sum_weights
from engine.training.state import TrainState
from engine.training.step import optimizer_to_device, step_key
from engine.training.step_spec import StepSpec
from engine.training.task import has_encode
from engine.training.update import has_own_update, optimize, own_update

PARTS = (8, 4, 2)
"""Numbers of parts of a batch whose gradients are compared, the preferred first, for a run without microbatches."""

type Squares = dict[str, dict[str, jax.Array]]
"""Measured value -> path of a parameter -> its squared norm; for a parameter of a stack, one for each layer."""


def parts_of(program: Program) -> int:
    """Returns into how many parts the batch of a run is divided: its microbatches, or a number of PARTS.

    It is 1, so that the noise is not known, if the gradients of the parts are not those of the rows of the batch: for
    a Task with `update` or `encode`, a model with state or with one dropout mask for all rows, and a loss that is one
    number for a batch.
    """
    spec, model = program.spec, program.spec.model
    if has_own_update(spec.task) or has_encode(spec.task):
        return 1
    if spec.accumulate > 1:
        return spec.accumulate
    if model.model_state or model.shared_dropout or not spec.loss_on_each_device:
        return 1
    unit = row_unit(program.mesh, spec.layout.microbatches)
    return next((parts for parts in PARTS if program.batch_size % (parts * unit) == 0), 1)


class GradientNorms:
    """The compiled programs of the norms, for batches of any shape of the run.

    Args:
        program: program of the run.
        groups: the layers of its model.
    """

    def __init__(self, program: Program, groups: Groups):
        self.parts, self._whole = parts_of(program), replicated(program.mesh)
        self._numbers = program.spec.optimizer.numbers
        measure = _make_measure(program.spec, program.task_metrics, self.parts, groups.leading)
        self._measure = jax.jit(with_layout(program.spec.layout, measure), out_shardings=self._whole)

    def measure(self, state: TrainState, batch: Batch) -> dict[str, dict[str, np.ndarray]]:
        """Returns the squared norms of the step that takes a state and a batch; waits for the devices.

        They are "param", "grad" and "update", and "part", the mean of the squared norms of the gradients of the parts.
        Every process must call it.
        """
        numbers = jax.make_array_from_process_local_data(self._whole, self._numbers)
        return jax.tree.map(np.asarray, self._measure(state, batch, numbers))


def _make_measure(
    settings: StepSpec, names: tuple[str, ...], parts: int, leading: Mapping[str, int]
) -> Callable[[TrainState, Batch, jax.Array], Squares]:
    def squares(arrays: Arrays) -> Arrays:
        return {path: _squares(x, leading.get(path, 0)) for path, x in arrays.items()}

    def measure(state: TrainState, batch: Batch, numbers: jax.Array) -> Squares:
        spec = settings.with_numbers(numbers)
        state, key = optimizer_to_device(spec, state), step_key(state, state.step)
        before = {path: state.params[path] for path in spec.model.trained}
        found = {"param": squares(state.params)}
        if has_own_update(spec.task):
            after = own_update(spec, state, batch, key, state.step)[0].params
        else:
            grads, of_parts = _gradients(spec, names, parts, squares, state, batch, key)
            found |= {"grad": squares(grads)} | ({"part": of_parts} if of_parts else {})
            after, _ = optimize(spec, before, state.opt_state, grads, optax.tree.norm(grads))
        return found | {"update": squares(jax.tree.map(jnp.subtract, after, before))}

    return measure


def _gradients(
    spec: StepSpec,
    names: tuple[str, ...],
    parts: int,
    squares: Callable[[Arrays], Arrays],
    state: TrainState,
    batch: Batch,
    key: jax.Array,
) -> tuple[Arrays, Arrays]:
    """Returns the gradient of a step, and the mean of the squared norms of the gradients of its parts."""
    if has_encode(spec.task) and spec.accumulate > 1:
        from engine.training.encoded import encoded_gradients

        return gradients(spec, names, state, batch, key, state.step, encoded_gradients)[0], {}
    if parts == 1:
        return gradients(spec, names, state, batch, key, state.step)[0], {}
    kept: list[tuple[Arrays, Arrays]] = []

    def of_parts(
        shared: Shared, trained: Arrays, model_state: Arrays, batch: Batch, keys: jax.Array, parts: Part
    ) -> tuple[Arrays, jax.Array, Arrays]:
        """Returns as the losses of all microbatches, and keeps the squares of their gradients and of the sum."""
        is_sum = shared.spec.objective.is_sum
        weights = sum_weights(shared, trained, model_state, parts) if is_sum else None

        def add(carry: PyTree, part: Part) -> tuple[PyTree, Arrays]:
            grads, sums, model_state = carry
            one = jax.tree.map(lambda x: x[None], part)
            more, more_sums, model_state = sum_gradients(shared, weights, trained, model_state, one)
            return (*jax.tree.map(jnp.add, (grads, sums), (more, more_sums)), model_state), squares(more)

        zeros = constrain(shared.spec, jax.tree.map(jnp.zeros_like, trained))
        first = zeros, jnp.zeros((len(shared.metric_names), 2)), model_state
        found, each = jax.lax.scan(add, first, parts, unroll=shared.spec.unroll)
        kept.append((jax.tree.map(lambda x: x.sum(0), each), squares(found[0])))
        return found

    spec = dataclasses.replace(spec, accumulate=parts)
    grads = gradients(spec, names, state, batch, key, state.step, of_parts)[0]
    [(sums, totals)] = kept
    found = {}
    for path, square in squares(grads).items():
        # `gradients` divides the sum by the weights of the loss, here in the squares. A part has 1 / parts of the rows.
        divided = jnp.where(totals[path] > 0, square / jnp.where(totals[path] > 0, totals[path], 1), 0)
        found[path] = parts * sums[path] * divided
    return grads, found


def _squares(x: jax.Array, leading: int) -> jax.Array:
    """Returns the sum of the squares over all dimensions but the first `leading` ones, which become one."""
    squared = jnp.square(x.astype(jnp.float32)).sum(tuple(range(leading, x.ndim)))
    return squared.reshape(-1) if leading else squared
