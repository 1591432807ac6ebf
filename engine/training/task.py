"""The `Task` protocol, with which an author defines a model, its loss and its metrics, and checks of its results.

A batch is a pytree of arrays `[batch, ...]`. `rng` holds random keys `[batch]`, one per example, derived from the seed,
the step and the row of the global batch. Random numbers drawn from them are therefore the same on every mesh and with
any number of microbatches.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from engine.base.errors import DataError, TaskError, did_you_mean
from engine.base.types import PyTree
from engine.base.user_errors import location
from engine.data.context import Context, call, current, wants_context
from engine.data.source import BaseSource
from engine.metrics.metric import Metric
from engine.metrics.state import check_metrics
from engine.training.arrays import cast
from engine.training.author_errors import entries, leaf_text
from engine.training.loss import TaskLoss
from engine.training.objective import check_terms, evaluation_metrics
from engine.training.update_state import UpdateState

type Examples = PyTree
"""Arrays `[batch, ...]`."""


class Task:
    """A model, its loss and its metrics.

    Subclass it, usually as a dataclass; its fields are the config section `task`:

        @dataclasses.dataclass
        class Digits(Task):
            width: int = 64

            def build(self, rngs):
                return Classifier(self.width, rngs=rngs)

            def loss(self, model, batch, rng):
                return Loss.of(cross_entropy(model(batch["image"]), batch["label"]))
    """

    model_state: ClassVar[tuple[type[nnx.Variable], ...]] = ()
    """NNX variable types, besides nnx.BatchStat, that are stored and not trained; the forward pass may update them."""

    full_precision: ClassVar[tuple[str, ...]] = ()
    """Names in the batch that stay float32 when `train.precision` is bfloat16, such as targets in metres."""

    mixes_rows: ClassVar[bool] = False
    """Set True to accept that metrics of a row depend on other rows of its batch. An evaluation then computes its last
    batch at its real size instead of padding it, and its results depend on its batch size."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a new model. The engine traces this method, so that each parameter is created with its sharding."""
        raise TaskError(f"{type(self).__name__} has no build(self, rngs). Define it and return an nnx.Module.")

    def loss(self, model: Any, batch: Examples, rng: jax.Array | None, *args: Any, **kwargs: Any) -> TaskLoss:
        """Returns the summed loss, its weight and metrics. Metrics never affect the gradient.

        The result may also be `Loss.sum(heat=..., box=...)`, or a dict of losses, of which each trains the group of
        that name in `optimizer.groups`. A loss that compares rows, such as a contrastive one, is written as `encode`
        and `loss_of` instead.

        Args:
            model: the model, in training mode.
            batch: pytree of arrays `[batch, ...]`.
            rng: random keys `[batch]`; None in an evaluation.
            *args: not passed; a method may declare a parameter `context`, which receives the `engine.Context`.
            **kwargs: not passed.
        """
        if has_encode(self):
            context, encoded = current(), encode(self, model, batch, rng, current())
            mask = None if context is None else context.mask
            mask = jnp.ones(len(jax.tree.leaves(batch)[0]), bool) if mask is None else mask
            return call(self.loss_of, encoded, batch, mask, context=context)
        raise TaskError(
            f"{type(self).__name__} has no loss(self, model, batch, rng). Define it and return Loss.of(values)."
        )

    def encode(self, model: Any, batch: Examples, rng: jax.Array | None, *args: Any, **kwargs: Any) -> PyTree:
        """Returns arrays per row `[rows, ...]` that `loss_of` compares, such as embeddings. Defined instead of `loss`.

        The rows must not depend on each other. The arguments are those of `loss`; with `train.accumulate`, `batch`
        holds the rows of one microbatch. A parameter that the loss needs, such as a temperature, is repeated per row:
        `jnp.broadcast_to(model.scale, rows)`.
        """
        raise TaskError(f"{type(self).__name__} has no encode(self, model, batch, rng).")

    def loss_of(self, encoded: PyTree, batch: Examples, mask: jax.Array, *args: Any, **kwargs: Any) -> TaskLoss:
        """Returns the loss of a batch from the results of `encode`; needed with it.

        It sees all rows of the global batch on any mesh and with any number of microbatches, whose gradient is
        computed as in GradCache (Gao et al. 2021, arXiv:2101.06983).

        Args:
            encoded: the result of `encode` for all rows, `[rows, ...]`.
            batch: pytree of arrays `[rows, ...]`.
            mask: bool `[rows]`, `context.mask`: False for padding and for an example that could not be read. Such rows
                must not change the result of the others.
            *args: not passed; a parameter `context` receives the `engine.Context`, as in `loss`.
            **kwargs: not passed.
        """
        raise TaskError(
            f"{type(self).__name__} has no loss_of(self, encoded, batch, mask). A Task with encode needs it."
        )

    def evaluate(self, model: Any, batch: Examples, *args: Any, **kwargs: Any) -> Mapping[str, Metric | None]:
        """Returns the metrics of a batch by name; by default the loss and its metrics. `model` is in eval mode.

        A method that returns no "loss" keeps it all the same: the engine adds "loss", and the terms of `Loss.sum`. With
        `"loss": None` the evaluation has no loss, and does not compute it. A method may declare a parameter
        `context`, as for `loss`.
        """
        context = current()
        try:
            return evaluation_metrics(call(self.loss, model, batch, None, context=context))
        except (TypeError, ValueError, AttributeError) as error:
            if context is None or not _works(lambda: call(self.loss, model, batch, context.rng, context=context)):
                raise
            name = type(self).__name__
            raise TaskError(
                f"{name}.loss: rng is None in an evaluation, and the loss uses it ({location(error)}). Declare a "
                "parameter `context` and use context.rng, which holds keys there too; or skip what is random if rng is "
                f"None; or define {name}.evaluate(self, model, batch)."
            ) from error

    def after_step(self, model: Any, context: Context) -> None:
        """Changes variables of the model after each update, such as the average weights of a teacher.

        The engine calls it once per step, whatever the number of microbatches, and not if the update is skipped. Every
        changed variable is kept: model state, frozen parameters and trained parameters. By default nothing changes.

        Args:
            model: the model after the update, in training mode and with float32 parameters.
            context: the step; `context.rng` is one random key.
        """

    def predict(self, model: Any, batch: Examples) -> PyTree:
        """Returns the predictions of a batch: a pytree of arrays `[batch, ...]`. Optional; `engine.predict` calls it.

        `model` is in eval mode. The rows of a batch must not depend on each other, since the last batch is padded.
        """
        raise TaskError(
            f"{type(self).__name__} has no predict(self, model, batch). Define it and return arrays [batch, ...] by "
            "name, such as {'label': model(batch['image']).argmax(-1)}."
        )

    def figure(self, example: Any, prediction: Mapping[str, Any]) -> Any:
        """Returns a figure of matplotlib that shows an example and its prediction; `engine.plot` helps. Optional.

        `evaluations.<name>.figures` and `convoy predict --figures` call it, on the host.

        Args:
            example: one example of the dataset, as numpy arrays, with its text.
            prediction: name -> numpy array: the row of each array that `predict` returns.
        """
        raise TaskError(f"{type(self).__name__} has no figure(self, example, prediction).")

    def update(self, state: UpdateState, batch: Examples, context: Context) -> tuple[UpdateState, Mapping[str, Metric]]:
        """Replaces the whole step, for what `loss` and `after_step` cannot express. Not defined by default.

        It is a pure function: `state.model(params)` gives the model, `state.apply_gradients(grads)` the state after an
        update of the optimizer of the config. The engine keeps shardings, checkpoints, the guard and `train.ema_decay`.
        The guard skips the update if the metric "loss", the gradient or a new parameter is not finite.

        Args:
            state: the state before the step.
            batch: the global batch, a pytree of arrays `[batch, ...]`.
            context: the step; `context.rng` holds random keys `[batch]`.

        Returns:
            The new state, and metrics by name, of which one is "loss".
        """
        raise NotImplementedError

    def batch_spec(self) -> PyTree:
        """Returns the shapes and dtypes of one example, as jax.ShapeDtypeStruct without the batch dimension.

        If it is not None, the engine compares it with the dataset before anything is compiled.
        """
        return None


_ARGUMENTS = {
    "build": ("rngs",),
    "loss": ("model", "batch", "rng"),
    "encode": ("model", "batch", "rng"),
    "loss_of": ("encoded", "batch", "mask"),
    "evaluate": ("model", "batch"),
    "after_step": ("model", "context"),
    "predict": ("model", "batch"),
    "figure": ("example", "prediction"),
    "update": ("state", "batch", "context"),
    "batch_spec": (),
}
"""Method of a Task -> the arguments with which the engine calls it, by position."""
_WITH_CONTEXT = ("loss", "encode", "loss_of", "evaluate")


def check_methods(task: Task) -> None:
    """Raises TaskError if a method of the Task cannot be called with the arguments that the engine passes.

    Also if it defines only one of `encode` and `loss_of`, or `loss` and these two.
    """
    name = type(task).__name__
    if has_encode(task) != _overrides(task, "loss_of"):
        missing = "loss_of(self, encoded, batch, mask)" if has_encode(task) else "encode(self, model, batch, rng)"
        raise TaskError(f"{name} has no {missing}. A Task defines encode and loss_of together, or loss.")
    if has_encode(task) and _overrides(task, "loss"):
        raise TaskError(f"{name} defines loss and encode. Remove loss, or encode and loss_of.")
    for name, arguments in _ARGUMENTS.items():
        method = getattr(task, name)
        keywords = {"context": None} if name in _WITH_CONTEXT and wants_context(method) else {}
        try:
            # A decorator may take other arguments than the method that it wraps.
            signature = inspect.signature(method, follow_wrapped=False)
        except (TypeError, ValueError):  # a callable without a signature
            continue
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise TaskError(
                f"{type(task).__name__}.{name}: found {name}{signature}, but the engine calls "
                f"{name}({', '.join(arguments)}): {error}. Define {name}({', '.join(('self', *arguments))})."
            ) from None


def has_encode(task: Task) -> bool:
    """Returns whether a Task defines `encode` and `loss_of` instead of `loss`."""
    return _overrides(task, "encode")


def _overrides(task: Task, method: str) -> bool:
    return getattr(type(task), method) is not getattr(Task, method)


def encode(task: Task, model: Any, batch: Examples, rng: jax.Array | None, context: Context | None) -> PyTree:
    """Returns the result of `task.encode`. Raises TaskError if it is not a pytree of arrays `[rows, ...]`."""
    encoded, rows = call(task.encode, model, batch, rng, context=context), len(jax.tree.leaves(batch)[0])
    for path, x in jax.tree.leaves_with_path(encoded):
        if jnp.shape(x)[:1] != (rows,):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the result"
            raise TaskError(
                f"{type(task).__name__}.encode: {name} is {leaf_text(x)} for a batch of {rows} rows. Return arrays "
                "[rows, ...]; repeat a parameter of the model with jnp.broadcast_to(value, rows)."
            )
    return encoded


def _works(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:
        return False
    return True


def for_sources(task: Task, sources: Mapping[str, BaseSource]) -> Task:
    """Returns the Task for the batches of sources, some of which adapt it, such as `engine.Joint`.

    Args:
        task: the Task of the author.
        sources: config section -> source.

    Raises:
        ConvoyError: the Task does not fit to such a source, or only some of the sources are such.
    """
    adapted = task
    for where, source in sources.items():
        adapted = source.adapt_task(adapted, where)
    plain = [where for where, source in sources.items() if not source.defines("adapt_task")]
    if adapted is not task and plain:
        other = next(where for where in sources if where not in plain)
        raise DataError(
            f"{plain[0]}: the examples belong to no named dataset, but those of {other} do. Name it, as in "
            "engine.Joint({NAME: SOURCE})."
        )
    return adapted


def check_examples(task: Task, found: PyTree, where: str) -> None:
    """Raises TaskError if an example of a dataset differs from the Task's `batch_spec`; the text names the entries.

    Args:
        task: the Task.
        found: an example of the dataset, as a pytree of ShapeDtypeStruct.
        where: config field of the dataset, for the error text.
    """
    if (spec := task.batch_spec()) is not None:
        check_spec(type(task).__name__, spec, found, where)


def check_spec(task: str, spec: PyTree, found: PyTree, where: str) -> None:
    """Raises TaskError if an example differs from a `batch_spec`; `task` is the name of the Task."""
    wanted_leaves, found_leaves = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (spec, found)
    )
    problems = []
    for path in sorted(wanted_leaves.keys() | found_leaves.keys()):
        texts = [leaf_text(leaves.get(path)) for leaves in (wanted_leaves, found_leaves)]
        if texts[0] != texts[1]:
            problems.append(f"{path}: {task}.batch_spec says {texts[0]}, the dataset gives {texts[1]}")
    if problems:
        raise TaskError(f"{where}: {'; '.join(problems)}. Change the dataset or batch_spec.")


@contextlib.contextmanager
def author_errors_reported(task: Task, method: str, batch: Examples) -> Iterator[None]:
    """Turns a KeyError of a method of the Task into a TaskError that lists the entries of the batch.

    Also the NameError of a collective over a mesh axis, which needs none: a method sees the rows of all devices.
    """
    try:
        yield
    except KeyError as error:
        key = error.args[0] if error.args else ""
        names = [str(name) for name in batch] if isinstance(batch, Mapping) else []
        raise TaskError(
            f"{type(task).__name__}.{method}: there is no {key!r} ({location(error)}).{did_you_mean(str(key), names)} "
            f"The batch holds {', '.join(entries(batch))}."
        ) from error
    except NameError as error:
        if "unbound axis name" not in str(error):
            raise
        raise TaskError(
            f"{type(task).__name__}.{method}: {error} ({location(error)}). A method of a Task sees the rows of all "
            "devices, so it needs no collective such as jax.lax.all_gather: remove it. For a loss that compares rows, "
            "define encode(self, model, batch, rng) and loss_of(self, encoded, batch, mask) instead of loss."
        ) from error


def check_loss(task: Task, result: object, batch_size: int) -> None:
    """Raises TaskError if the result of `task.loss`, traced or not, is not valid for `batch_size` rows."""
    where = f"{type(task).__name__}.loss"
    check_metrics(check_terms(result, where), batch_size, where, collect=False)


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
