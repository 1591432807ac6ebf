"""The loss in evaluations of a Task whose `evaluate` does not return it.

Without it, such a Task would lose the curve that shows overfitting. Only evaluations of such a Task import this module.
"""

import functools
from collections.abc import Callable

from engine.base.user_errors import describe
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.evaluation_step import Built
from engine.compile.row_check import RowCheck
from engine.compile.row_results import evaluated_losses
from engine.data.source import BaseSource
from engine.training.task import Task, has_encode


def with_loss(
    build: Callable[[bool], Built], program: EvaluationProgram, source: BaseSource, rows: int, padding: str
) -> tuple[Built, list[str]]:
    """Returns the step of an evaluation with the loss; without it, and a warning, if it cannot be measured exactly.

    Args:
        build: calls `evaluation_step` with or without the loss, which it adds if `Task.evaluate` does not return it.
        program: the Task and its model on a mesh.
        source: the examples of the evaluation.
        rows: rows of a batch.
        padding: which rows have weight 0; "" if none has.
    """
    task = program.task
    if type(task).loss is Task.loss and not has_encode(task):  # the Task has an `update`
        return build(False), []
    try:
        built = build(True)
    except Exception as error:  # of any kind: the author's loss runs here without a random key for the first time
        without = build(False)  # raises the errors of `evaluate`
        return without, [_warning(task, f"loss fails where rng is None: {describe(error).rstrip('.')}")]
    step, _, by_row = built
    if not step.adds_loss or task.mixes_rows:
        return built, []
    if not by_row:
        without = build(False)
        return (without, [_warning(task, "loss returns one number for a batch")]) if without[2] else (built, [])
    if padding and (place := _mixes_rows(program, source, rows)) is not None:
        place = f" ({place})" if place else ""
        text = f"loss of a row may depend on other rows of its batch{place}, and {padding}"
        return build(False), [_warning(task, text)]
    return built, []


def _warning(task: Task, problem: str) -> str:
    name = type(task).__name__
    return (
        f"the loss is not measured, since {name}.{problem}. Return 'loss' from {name}.evaluate, with the value None to "
        "leave it out without this warning."
    )


def _mixes_rows(program: EvaluationProgram, source: BaseSource, rows: int) -> str | None:
    """Returns where the loss mixes rows by its traced program; None if it is proved that it does not."""
    method = functools.partial(evaluated_losses, program.task)
    unproved = RowCheck(program, source, method, training=False, splits=False).unproved(rows)
    return None if unproved is None else next(filter(None, unproved.values()), "")
