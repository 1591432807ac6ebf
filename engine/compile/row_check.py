"""Finds out whether a method of a Task mixes rows: whether its result for a row depends on other rows of the batch.

The traced program proves that most methods do not (`training/row_dependence.py`). Otherwise the method runs on a few
examples with random weights, since a head that is zero at the start of a run would hide what it mixes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax.extend.core import Jaxpr

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.row_results import Found, encodings, evaluated, losses, predicted
from engine.config.schema import Train
from engine.data.context import Context
from engine.data.source import BaseSource, example_spec
from engine.data.text import without_text
from engine.parallel.layout import Layout, with_layout
from engine.parallel.mesh import one_device, replicated
from engine.parallel.schedule import row_unit
from engine.training.accumulation import refuse_mixed
from engine.training.arrays import Arrays
from engine.training.model import with_whole_kernels
from engine.training.row_counts import differences
from engine.training.row_dependence import trace_rows
from engine.training.row_rules import ByRow, Mixed, Same, State, anything
from engine.training.task import Task, has_encode
from engine.training.update import has_own_update

TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the largest magnitude of an array. The method is computed in
float32, and a row that meets no other row differs by 1e-6 at most, where a kernel sums its entries in another order."""
NOISE = 0.05  # standard deviation of what is added to the initial weights
EXAMPLES, TRIES = 16, 64  # examples that are compared at most, and read at most


type Method = Callable[[nnx.Module, PyTree, Context], Found]
"""Takes the model, a batch and the context with the keys of its rows; to be traced."""
type Order = npt.NDArray[np.int64]
type Mask = npt.NDArray[np.bool_] | None


def check_loss(
    program: EvaluationProgram, source: BaseSource, train: Train, ignored: tuple[str, str] = ("", "")
) -> list[str]:
    """Checks whether microbatches and rows of weight 0 leave the loss of a Task as it is; returns warnings.

    Args:
        program: the Task and its model on the mesh.
        source: the training data.
        train: config section `train`; a number of microbatches or auto.
        ignored: what gives rows weight 0, and the name of such a row (`StepSpec.ignored_rows`).

    Raises:
        ConfigError: the loss mixes rows, and `train.accumulate` is not 1.
        TaskError: `Task.encode` mixes rows, or `Task.loss_of` depends on rows that its mask leaves out.
    """
    task, name = program.task, type(program.task).__name__
    splits = train.accumulate != 1 and not train.approximate_accumulation
    reason, row = ignored
    if has_own_update(task) or not (splits or reason):
        return []
    if splits and program.model.state_of_rows(program.rows):
        return []  # `Program` refuses microbatches of a model that keeps state of each row
    method = encodings if has_encode(task) else losses
    mixed = mixed_rows(program, source, functools.partial(method, task), None, training=True, splits=splits)
    if has_encode(task):
        _check_encode(name, mixed if splits else "")
        if reason and not mixed:
            _check_mask(program, source, losses, f"{reason}: {row} has weight 0", training=True)
    elif mixed and splits:
        raise refuse_mixed(name, mixed, train.accumulate)
    if not mixed:
        return []
    where = f"{reason}: in {name}.{'encode' if has_encode(task) else 'loss'}"
    advice = "" if has_encode(task) else " Define encode and loss_of instead of loss, whose mask leaves it out."
    return [f"{where}, {mixed}. So {row} changes the other rows.{advice}"]


def check_evaluation(program: EvaluationProgram, source: BaseSource, rows: int, where: str, padding: str) -> None:
    """Checks that rows of weight 0 leave the metrics of `Task.evaluate` as they are.

    Args:
        program: the Task and its model on the mesh.
        source: the examples of the evaluation.
        rows: rows of a batch.
        where: config section of the evaluation.
        padding: what has weight 0, such as "the last batch is padded with 3 rows".

    Raises:
        TaskError: a metric mixes rows, or `Task.loss_of` depends on rows that its mask leaves out.
    """
    task = program.task
    if has_encode(task) and type(task).evaluate is Task.evaluate:
        method = functools.partial(encodings, task)
        _check_encode(type(task).__name__, mixed_rows(program, source, method, rows, training=False, splits=False))
        _check_mask(program, source, evaluated, f"in {where} {padding}", training=False)
        return
    mixed = mixed_rows(program, source, functools.partial(evaluated, task), rows, training=False, splits=False)
    if mixed:
        name, own = type(task).__name__, type(task).evaluate is not Task.evaluate
        advice = "Define encode and loss_of instead of loss, whose mask leaves these rows out"
        raise TaskError(
            f"{where}: in {name}.{'evaluate' if own else 'loss'}, {mixed}, and {padding}. "
            f"{'Compute the metrics of a row from itself' if own else advice}; or set {where}.batch_size to a divisor "
            f"of the {len(source)} examples; or set {name}.mixes_rows = True, which computes the last batch at its "
            "real size."
        )


def _check_encode(task: str, mixed: str) -> None:
    if mixed:
        raise TaskError(f"{task}.encode: {mixed}. Move what compares rows to loss_of, which sees all of them.")


def _check_mask(
    program: EvaluationProgram, source: BaseSource, method: Callable[..., Found], masked: str, *, training: bool
) -> None:
    check = RowCheck(program, source, functools.partial(method, program.task), training, splits=False)
    if name := check.unmasked():
        raise TaskError(
            f"{type(program.task).__name__}.loss_of: {_result(name)} depends on rows for which mask is False, and "
            f"{masked}. Leave these rows out of what the others are compared with, such as by jnp.where(mask, logits, "
            "-jnp.inf)."
        )


def check_predictions(program: EvaluationProgram, source: BaseSource, rows: int, padding: str) -> None:
    """Raises TaskError if `Task.predict` mixes rows; otherwise as `check_evaluation`."""
    mixed = mixed_rows(program, source, functools.partial(predicted, program.task), rows, training=False, splits=False)
    if mixed:
        raise TaskError(
            f"{type(program.task).__name__}.predict: {mixed}, and {padding}. Choose a batch size that divides the "
            f"{len(source)} examples, or predict each row from itself."
        )


def mixed_rows(
    program: EvaluationProgram, source: BaseSource, method: Method, rows: int | None, *, training: bool, splits: bool
) -> str:
    """Returns which result of a method mixes rows, and where; "" if none does.

    Args:
        program: the Task and its model on a mesh.
        source: examples to try.
        method: the method.
        rows: rows of a batch for the trace; None: the fewest that the mesh allows.
        training: whether the model is in training mode.
        splits: whether the rows of a batch may be fewer than that, as in microbatches.
    """
    check = RowCheck(program, source, method, training, splits)
    unproved = check.unproved(rows or 2 * check.unit)
    if unproved is None:
        return ""
    name = check.differing()
    if not name:
        return ""
    place = unproved.get(name, "")
    text = f"{_result(name)} of a row depends on other rows of its batch" + " or on their number" * splits
    return text + (f" ({place})" if place else "")


def _result(name: str) -> str:
    """Returns the metric, or the array, of which a field has this name."""
    return repr(name.rpartition(".")[0] or name)


@dataclass(frozen=True)
class RowCheck:
    """Checks one method of a Task; the arguments are those of `mixed_rows`."""

    program: EvaluationProgram
    source: BaseSource
    method: Method
    training: bool
    splits: bool

    @functools.cached_property
    def spec(self) -> PyTree:
        """One example, as a pytree of ShapeDtypeStruct."""
        return example_spec(self.source)

    @property
    def row_state(self) -> list[str]:
        """Paths of the model state that has a row for each row of a batch."""
        return self.program.model.state_of_rows(self.program.rows)

    @property
    def unit(self) -> int:
        """Number of which the rows of a batch are a multiple."""
        return row_unit(self.program.mesh, self.program.layout.microbatches)

    def call(self, params: Arrays, model_state: Arrays, examples: PyTree, keys: jax.Array, mask: jax.Array) -> Found:
        """Calls the method; to be traced."""
        program = self.program
        module = program.model.module(with_whole_kernels(program.model, params), model_state, jax.random.key(0))
        program.model.train(module) if self.training else module.eval()
        context = Context(jnp.int32(0), jnp.float32(0), program.total_steps, keys, mask)
        return self.method(module, examples, context)

    def unproved(self, rows: int) -> dict[str, str] | None:
        """Returns name -> place of the results that may mix rows by the traced program; None if no result does.

        The trace is that for one device, without kernels, as for the count of the FLOPs.
        """
        layout = dataclasses.replace(
            self.program.layout, mesh=one_device(self.program.mesh), remat="none", counts_flops=True, used=set()
        )
        weights = self.program.abstract_weights(averaged=False)
        weights = _plain((dict(weights.params), dict(weights.model_state)))

        def trace(rows: int) -> tuple[Jaxpr, list[object], Found]:
            examples = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), self.spec)
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
            arguments = (*weights, examples, keys, jax.ShapeDtypeStruct((rows,), bool))
            closed, out = jax.make_jaxpr(with_layout(layout, self.call), return_shape=True)(*arguments)
            return closed.jaxpr, closed.consts, out

        jaxpr, constants, out = trace(rows)
        model_state = {p: ByRow(0) if p in self.row_state else anything(x.shape) for p, x in weights[1].items()}
        shared = [
            *(anything(x.shape) for _, x in sorted(weights[0].items())),
            *(x for _, x in sorted(model_state.items())),
        ]
        states: list[State] = [*shared, *[ByRow(0)] * (len(jaxpr.invars) - len(shared))]
        changes, sizes = {}, out
        if self.splits:
            larger, larger_constants, sizes = trace(2 * rows)
            changes = differences(jaxpr, larger, (constants, larger_constants))
        found = jax.tree.unflatten(jax.tree.structure(out), trace_rows(jaxpr, states, rows, changes))
        grown = {name for name, x in out.rows.items() if x.shape[1:] != sizes.rows[name].shape[1:]}
        places = {
            name: state.place if isinstance(state, Mixed) else ""
            for name, state in found.rows.items()
            if name in grown or not (_is_uniform(state) or (state == ByRow(0) and out.rows[name].shape[0] == rows))
        }
        return places if places or out.sums else None

    def differing(self) -> str:
        """Returns the name of a result that changes with other rows of the batch; "" if none does."""
        run, order = self._runner()
        numbers, parts = np.arange(len(order)), [np.sort(part) for part in np.split(order, 2)]
        whole = run(numbers)
        runs = [(order, run(order))]  # the place of a row does not matter
        for part in parts:  # nor do the others, which have weight 0
            places = np.isin(numbers, part)
            found = run(np.where(places, numbers, np.resize(part, len(numbers))), places)
            runs.append((part, jax.tree.map(lambda x, part=part: x[part], Found(found.rows, {}))))
        halves = [run(part) for part in parts] if self.splits or whole.sums else []
        runs += zip(parts, halves, strict=False)
        for name in sorted(whole.rows, key=lambda name: not name.startswith("loss")):
            if any(_differ(whole.rows[name][numbers], found.rows[name]) for numbers, found in runs):
                return name
        for name, (total, weight) in whole.sums.items():
            totals, weights = np.sum([found.sums[name] for found in halves], axis=0)
            if _differ(np.divide(total, weight), np.divide(totals, weights)):
                return name
        return ""

    def unmasked(self) -> str:
        """Returns the name of a result that changes with rows that the mask leaves out; "" if none does."""
        run, order = self._runner()
        numbers, kept = np.arange(len(order)), np.sort(np.split(order, 2)[0])
        places = np.isin(numbers, kept)
        first, second = run(numbers, places), run(np.where(places, numbers, np.resize(kept, len(numbers))), places)
        by_row = (name for name, x in first.rows.items() if _differ(x[kept], second.rows[name][kept]))
        summed = (name for name, x in first.sums.items() if _differ(x, second.sums[name]))
        return next(itertools.chain(by_row, summed), "")

    def _runner(self) -> tuple[Callable[..., Found], Order]:
        """Returns a function that runs the method on the examples of given numbers, and a random order of them."""
        examples = _read(self.source, self.spec)
        count = len(jax.tree.leaves(examples)[0])
        half = self.unit * -(-min(count, EXAMPLES) // (2 * self.unit))
        half = self.program.rows // 2 if self.row_state else half
        layout = dataclasses.replace(self.program.layout, precision="float32", used=set())
        run = functools.partial(self._run, self._compiled(layout), self._weights(layout), examples)
        return run, np.random.default_rng(3).permutation(2 * half)

    def _compiled(self, layout: Layout) -> Callable[..., Found]:
        def call(params: Arrays, model_state: Arrays, examples: PyTree, numbers: jax.Array, mask: jax.Array) -> Found:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), numbers)
            return self.call(params, model_state, examples, keys, mask)

        return jax.jit(with_layout(layout, call), out_shardings=replicated(self.program.mesh))

    def _weights(self, layout: Layout) -> tuple[Arrays, Arrays]:
        """Returns the initial weights with noise, with their shardings."""
        program = self.program

        def weights() -> tuple[Arrays, Arrays]:
            params, model_state = program.model.init(program.task, program.seed)
            noisy = {}
            for number, (path, x) in enumerate(sorted(params.items())):
                noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), number), x.shape)
                noisy[path] = x + (NOISE * noise).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
            return noisy, model_state

        abstract = program.abstract_weights(averaged=False)
        shardings = jax.tree.map(lambda x: x.sharding, (dict(abstract.params), dict(abstract.model_state)))
        return jax.jit(with_layout(layout, weights), out_shardings=shardings)()

    def _run(
        self, function: Callable[..., Found], weights: PyTree, examples: PyTree, order: Order, mask: Mask = None
    ) -> Found:
        """Returns the results for the examples of these numbers, as numpy arrays; `mask` is False for weight 0."""

        def placed(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, self.program.batch_sharding, x.__getitem__)

        chosen = jax.tree.map(lambda x: x[order % len(x)], examples)
        by_row = (chosen, order.astype(np.uint32), np.ones(len(order), bool) if mask is None else mask)
        return jax.device_get(function(*weights, *jax.tree.map(placed, by_row)))


def _plain(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _is_uniform(state: State) -> bool:
    """Whether every row of a result is the same, whatever the batch."""
    return isinstance(state, Same) and 0 not in state.varies


def _differ(a: npt.ArrayLike, b: npt.ArrayLike) -> bool:
    """Whether arrays differ by more than rounding. Values that are not finite must be the same ones."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return True
    largest = max((np.abs(x[finite]).max(initial=0) for x in (a, b)), default=0)
    return bool((np.abs(a - b)[finite] > TOLERANCE * largest).any())


def _read(source: BaseSource, spec: PyTree) -> PyTree:
    """Returns up to EXAMPLES readable examples of the shape of the first one, as arrays `[examples, ...]`."""
    found = []
    shapes = jax.tree.map(lambda x: x.shape, spec)
    for index in range(min(len(source), TRIES)):
        try:
            example = jax.tree.map(lambda x, wanted: np.asarray(x, wanted.dtype), without_text(source[index]), spec)
        except Exception:  # a bad example is reported when training reads it
            continue
        if jax.tree.map(np.shape, example) == shapes:
            found.append(example)
        if len(found) == EXAMPLES:
            break
    return jax.tree.map(lambda *rows: np.stack(rows), *found)
