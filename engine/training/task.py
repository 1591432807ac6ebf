"""The author's protocol: a Task builds a model and says what is good and what is bad about it.

Owns: `Task` and the checks of what it returns. Does not own: how its model's variables are kept (`model.py`) or how
its loss becomes a step (`step.py`).

Terms. *Batch*: any pytree of arrays whose first dimension is the batch. *rng*: random keys `[batch]`, one for each
example, derived from the seed, the step and the example's place in the global batch, so that randomness drawn from
them is the same on every mesh and with every number of microbatches.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from engine.config.errors import TaskError
from engine.metrics import Loss, Mean, check_means
from engine.types import PyTree

type Examples = PyTree
"""Arrays `[batch, ...]`."""


class Task:
    """What to train. Subclass it, usually as a dataclass whose fields are the config's `task` section.

    @dataclasses.dataclass
    class Digits(Task):
        width: int = 64

        def build(self, rngs):
            return Classifier(self.width, rngs=rngs)

        def loss(self, model, batch, rng):
            return Loss.of(cross_entropy(model(batch["image"]), batch["label"]))
    """

    carried: ClassVar[tuple[type[nnx.Variable], ...]] = ()
    """Kinds of NNX variables of the author's own that change while training and are no parameters."""

    full_precision: ClassVar[tuple[str, ...]] = ()
    """Names in the batch that stay float32 when `train.precision` is bfloat16 (targets in metres, say)."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a new model; it is traced, so that each parameter is born where it will live."""
        raise TaskError(f"{type(self).__name__} has no build(self, rngs). Return an nnx.Module from it.")

    def loss(self, model: Any, batch: Examples, rng: jax.Array | None) -> Loss:
        """Returns the summed loss, its weight and metrics. `model` is in training mode, `rng` has keys `[batch]`."""
        raise TaskError(f"{type(self).__name__} has no loss(self, model, batch, rng). Return Loss.of(values) from it.")

    def evaluate(self, model: Any, batch: Examples) -> Mapping[str, Mean]:
        """Returns metrics of a batch, `model` being in evaluation mode; by default the loss and its metrics."""
        loss = self.loss(model, batch, None)
        return {"loss": Mean(loss.total, loss.weight), **loss.metrics}

    def batch_spec(self) -> PyTree:
        """Returns the shapes and dtypes of one example, as jax.ShapeDtypeStruct without the batch dimension.

        None takes what the dataset gives; otherwise the two are compared before anything is compiled.
        """
        return None


def check_examples(task: Task, found: PyTree, where: str) -> None:
    """Raises TaskError where a dataset's example differs from the Task's batch spec, naming the entry.

    Args:
        task: whose `batch_spec` counts.
        found: the dataset's example, as a pytree of ShapeDtypeStruct.
        where: of the dataset, for the error.
    """
    spec = task.batch_spec()
    if spec is None:
        return
    wanted_leaves, found_leaves = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (spec, found)
    )
    problems = []
    for path in sorted(wanted_leaves.keys() | found_leaves.keys()):
        texts = [_leaf_text(leaves.get(path)) for leaves in (wanted_leaves, found_leaves)]
        if texts[0] != texts[1]:
            problems.append(f"{path}: {type(task).__name__}.batch_spec says {texts[0]}, the dataset gives {texts[1]}")
    if problems:
        raise TaskError(f"{where}: {'; '.join(problems)}. Change the dataset or batch_spec.")


def _leaf_text(leaf: jax.ShapeDtypeStruct | None) -> str:
    return "nothing" if leaf is None else f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def check_loss(task: Task, loss: object, batch_size: int) -> None:
    """Raises TaskError when the (abstract) result of `task.loss` is not a sum and a weight."""
    where = f"{type(task).__name__}.loss"
    if not isinstance(loss, Loss):
        raise TaskError(f"{where} returned a {type(loss).__name__}. Return Loss.of(values, where=..., metrics=...).")
    if "loss" in loss.metrics:
        raise TaskError(f"{where}: 'loss' is the engine's own metric. Name the other one differently.")
    check_means({"loss": Mean(loss.total, loss.weight), **loss.metrics}, batch_size, where)
