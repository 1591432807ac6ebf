"""Which inputs of a Task are rounded by `train.precision`, as a sentence for the user."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engine.base.types import PyTree
from engine.training.arrays import cast
from engine.training.task import Task


def rounded_inputs(task: Task, examples: PyTree, dtype: DTypeLike) -> list[str]:
    """Returns the paths of the entries of a batch that lose precision when they are cast to `dtype`.

    Args:
        task: the Task, whose `full_precision` names the entries that are not cast.
        examples: abstract or concrete arrays of a batch.
        dtype: precision of the computation.
    """
    after = jax.eval_shape(lambda tree: cast(tree, dtype, task.full_precision), examples)
    pairs = zip(jax.tree.leaves_with_path(examples), jax.tree.leaves(after), strict=True)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, before), now in pairs
        if before.dtype != now.dtype and jnp.finfo(before.dtype).nmant > jnp.finfo(now.dtype).nmant
    ]


def rounding_note(task: Task, examples: PyTree, dtype: DTypeLike, precision: str) -> str:
    """Returns a sentence that names the inputs that a `train.precision` rounds to `dtype`; "" if it rounds none."""
    names = rounded_inputs(task, examples, dtype)
    if not names:
        return ""
    error = float(jnp.finfo(dtype).eps) / 2
    return (
        f"train.precision={precision} rounds the input{'s' * (len(names) > 1)} {', '.join(names)}, also in "
        f"evaluations, by up to {error:.1%}. Inputs that must stay float32, such as coordinates, times and boxes, "
        f"belong in {type(task).__name__}.full_precision."
    )
