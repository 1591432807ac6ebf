"""A step of an evaluation: a jitted function of weights and a batch, whose programs may be compiled before a call."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from engine.base.types import PyTree
from engine.cluster import group
from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.shapes import shapes_of
from engine.data.batch import Batch, abstract_batch
from engine.data.source import BaseSource, example_spec
from engine.metrics.metric import Metric
from engine.metrics.slices import NO_RANKING, Ranking, SlicedStates
from engine.metrics.state import Reduced, check_metrics
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
from engine.training.arrays import Arrays
from engine.training.objective import LOSS, without_refused_loss
from engine.training.slices import NO_SLICES, Slices
from engine.training.state import Weights
from engine.training.step import evaluate, evaluate_loss
from engine.training.task import author_errors_reported

ARGUMENTS = ("params", "model_state", "batch", "point", "members")
"""Names of the arguments of a step, for messages; a step of predictions has the first three."""


class EvaluationStep[Result]:
    """Computes the metrics or the predictions of a batch.

    Args:
        jitted: the function of ARGUMENTS.
        lower: returns its lowered program for abstract weights and an abstract batch.
        mesh: the devices.
        carried: paths of the model state of the rows, whose new values a call also returns, for the next batch.
        adds_loss: whether it also computes the loss, which `Task.evaluate` does not return.
    """

    def __init__(
        self,
        jitted: Any,
        lower: Callable[[Weights, Batch], jax.stages.Lowered],
        mesh: Mesh,
        carried: Iterable[str] = (),
        adds_loss: bool = False,
    ):
        self.adds_loss = adds_loss
        self._jitted, self._lower, self._mesh = jitted, lower, mesh
        self.carried = tuple(carried)
        self._compiled: dict[tuple[object, ...], jax.stages.Compiled] = {}  # shapes of a batch -> its program
        self._have_run = set[tuple[object, ...]]()  # shapes of the batches so far
        self._name, self._say, self._reported = "", ProgramCompiler().say, False

    def compile(self, name: str, weights: Weights, batch: Batch, compiler: ProgramCompiler) -> jax.stages.Compiled:
        """Compiles the program for batches of these shapes, which later calls use, and returns it.

        Args:
            name: name of the program, for messages.
            weights: the weights that the calls pass, as jax.ShapeDtypeStruct with shardings.
            batch: a batch that the calls pass, likewise.
            compiler: compiles the program, or loads it.
        """
        compiled = compiler.compile(name, self._lower(weights, batch), self._mesh)
        self._compiled[shapes_of(batch)] = compiled
        self._name, self._say = self._name or name, compiler.say
        return compiled

    def __call__(self, params: Arrays, model_state: Arrays, batch: Batch, *more: Any) -> Result:
        """Runs the program that was compiled for the arrays; compiles another one for others.

        It warns once if arrays of the same shapes of the batch differ.
        """
        arguments, shapes = (params, model_state, batch, *more), shapes_of(batch)
        if shapes not in self._have_run:
            self._have_run.add(shapes)
            group.meet("the first batch of an evaluation")  # read by all processes (`parallel/connect.py`)
        if (compiled := self._compiled.get(shapes)) is not None:
            try:
                return compiled(*arguments)
            except (TypeError, ValueError):  # JAX checks before it runs: the state of a hook may hold other arrays
                if not (difference := first_difference(compiled, arguments)):
                    raise
                self._report(difference)
        return self._jitted(*arguments)

    def _report(self, difference: str) -> None:
        if not self._reported:
            self._reported = True
            self._say(
                f"warning: {self._name}: another program is compiled, since its arrays are not those for which it was "
                f"compiled ahead: {difference}."
            )


type Built = tuple[EvaluationStep[Reduced], SlicedStates, bool]
"""The step of an evaluation, its metrics, and whether all metrics have one entry per row."""


def evaluation_step(
    program: EvaluationProgram,
    example: PyTree,
    batch_size: int,
    slices: Slices = NO_SLICES,
    ranking: Ranking = NO_RANKING,
    where: str = "",
    adds_loss: bool = False,
) -> Built:
    """Returns the step of an evaluation, its metrics, and whether all metrics have one entry per row.

    The last argument of the step is what `Slices.members` returns, as global arrays; None without such slices.

    Args:
        program: the Task and its model on a mesh.
        example: one example, as a pytree of ShapeDtypeStruct.
        batch_size: rows of a batch.
        slices: the slices of the evaluation.
        ranking: how examples and slices are ranked.
        where: config section of the evaluation, for error texts.
        adds_loss: whether the step computes the loss, too, if the Task's `evaluate` does not return it.

    Raises:
        TaskError: the Task's `evaluate` does not return valid metrics, or a slice or the score does not fit.
    """
    weights = program.abstract_weights(averaged=False)
    batch = abstract_batch(example, batch_size, program.batch_sharding)
    checked, added, names, carried = list[bool](), list[bool](), list[str](), list[str]()
    compute = functools.partial(_compute, program, f"{where}.batch_size", adds_loss)

    def check(params: Arrays, model_state: Arrays, batch: Batch, point: jax.Array) -> Mapping[str, Metric]:
        metrics, state, added_loss = compute(params, model_state, batch, point)
        carried.extend(state)
        added.append(added_loss)
        checked.append(check_metrics(metrics, batch_size, f"{type(program.task).__name__}.evaluate"))
        names.extend(slices.masks(batch.examples, None))
        return dict(metrics)

    metrics = jax.eval_shape(
        with_layout(program.layout, check), weights.params, weights.model_state, batch, program.point(0, 0)
    )
    [by_row] = checked
    states = SlicedStates(metrics, names, ranking, where)

    def step(
        params: Arrays, model_state: Arrays, batch: Batch, point: jax.Array, members: dict[str, jax.Array] | None
    ) -> Reduced | tuple[Reduced, Arrays]:
        masks = slices.masks(batch.examples, members) if slices.functions else {}
        metrics, state, _ = compute(params, model_state, batch, point)
        reduced = states.reduce(metrics, batch.weight, masks)
        return (reduced, state) if state else reduced

    jitted = jax.jit(with_layout(program.layout, step), out_shardings=replicated(program.mesh))

    def lower(weights: Weights, batch: Batch) -> jax.stages.Lowered:
        point = jax.ShapeDtypeStruct((3,), jnp.uint32)
        members = slices.abstract_members(len(batch.weight), jax.tree.leaves(batch)[0].sharding)
        return jitted.lower(weights.params, weights.model_state, batch, point, members)

    return EvaluationStep(jitted, lower, program.mesh, carried, adds_loss=any(added)), states, by_row


def with_rows_of(program: EvaluationProgram, source: BaseSource, batch_size: int, where: str) -> EvaluationProgram:
    """Returns the program for batches of so many rows that continue drives: the state of rows has as many.

    Such a drive begins with the state of a new model, so that state of another number of rows needs no values.

    Args:
        program: the Task and its model, whose state has a row for each row of a training batch.
        source: the examples; the program is returned as it is if their rows do not continue.
        batch_size: rows of a batch.
        where: config section of the evaluation, for error texts.
    """
    model = program.model
    if not source.continues_rows or batch_size == program.rows or not model.state_of_rows(program.rows):
        return program
    carried = evaluation_step(program, example_spec(source), program.rows, where=where)[0].carried
    shapes = {path: (batch_size, *model.model_state[path].shape[1:]) for path in carried}
    model_state = {
        path: jax.ShapeDtypeStruct(shapes.get(path, x.shape), x.dtype) for path, x in model.model_state.items()
    }
    return dataclasses.replace(program, model=dataclasses.replace(model, model_state=model_state), rows=batch_size)


def _compute(
    program: EvaluationProgram,
    field: str,
    adds_loss: bool,
    params: Arrays,
    model_state: Arrays,
    batch: Batch,
    point: jax.Array,
) -> tuple[Mapping[str, Metric], Arrays, bool]:
    """Returns as `evaluate` for a batch, whose first example and whose step `point` gives; and if a loss was added."""
    task, rows = program.task, len(batch.weight)
    context = program.context(point, batch.weight)
    with author_errors_reported(task, "evaluate", batch.examples), program.row_state_reported(rows, field):
        arguments = (task, program.model, program.compute_dtype, params, model_state, batch, context)
        returned, state = evaluate(*arguments)
        metrics, adds_loss = without_refused_loss(returned), adds_loss and bool(returned) and LOSS not in returned
        return ({**evaluate_loss(*arguments), **metrics} if adds_loss else metrics), state, adds_loss


def first_difference(compiled: jax.stages.Compiled, arguments: tuple[Any, ...]) -> str:
    """Returns how the first argument that differs from those of a program differs; "" if none does."""
    expected, shardings = compiled.args_info[0], compiled.input_shardings[0]
    wanted = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(expected)}
    placed = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(shardings)}  # without unused arguments
    found = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(arguments)}
    for name in {**wanted, **found}:
        if name not in wanted or name not in found:
            return f"{name} {'is new' if name in found else 'is missing'}"
        here, there = _form(found[name]), _form(wanted[name])
        if here != there:
            return f"{name} is {here}, not {there}"
        sharding = found[name].sharding if isinstance(found[name], jax.Array) and name in placed else None
        if sharding is not None and not sharding.is_equivalent_to(placed[name], found[name].ndim):
            return f"{name} is split as {_spec(sharding)}, not as {_spec(placed[name])}"
    return ""


def _path(path: tuple[Any, ...]) -> str:
    """Returns the name of an array, such as "params/head/kernel"."""
    first, *rest = path
    return "/".join(filter(None, (ARGUMENTS[first.idx], jax.tree_util.keystr(tuple(rest), simple=True, separator="/"))))


def _form(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _spec(sharding: jax.sharding.Sharding) -> str:
    return str(tuple(sharding.spec)) if isinstance(sharding, NamedSharding) else str(sharding)
