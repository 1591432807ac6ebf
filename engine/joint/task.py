"""`JointTask`, which passes the batches of a `Joint` to the Task of the author, dataset by dataset.

The engine sees bundles: keys, weights and losses `[bundles]`. The author sees the examples of each dataset `[rows]`.
"""

import copy
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.data.context import Context, call
from engine.joint.bundles import Bundles
from engine.metrics.metric import Metric
from engine.metrics.values import describe_value
from engine.training.loss import Loss, LossSum
from engine.training.task import Task, check_spec, has_encode
from engine.training.update import has_own_update

if TYPE_CHECKING:
    from engine.joint.source import Joint


class JointTask(Task):
    """The Task of an author for batches of `Joint`; made by `adapted`.

    Attributes:
        task: the Task of the author.
        joint: the training data; None in a process that only evaluates.
    """

    task: Task
    joint: "Joint | None" = None

    def __getattr__(self, name: str) -> Any:
        """Returns other attributes of the author's Task."""
        if name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.task.build(rngs)

    def after_step(self, model: Any, context: Context) -> None:
        self.task.after_step(model, context)

    def loss(self, model: Any, batch: PyTree, rng: jax.Array | None, context: Context | None) -> LossSum:
        """Returns the losses of the datasets as sums over bundles `[bundles]`."""
        bundles = self._bundles(batch, "loss")
        found = self._terms(model, bundles, rng, context)
        found |= self._absent_terms(model, bundles, rng, context)
        return Loss.sum(**{name: found[name] for name in sorted(found)})

    def _terms(self, model: Any, bundles: Bundles, rng: jax.Array | None, context: Context | None) -> dict[str, Loss]:
        """Returns the losses of the datasets in a batch, with the factors of the source in training."""
        keys = None if rng is None else _keys(rng, bundles)
        result = call(self.task.loss, model, _examples(bundles), keys, context=_context(context, bundles))
        where = f"{type(self).__name__}.loss"
        found: dict[str, Loss] = {}
        for name, term in _named(result, bundles, where).items():
            dataset = name.partition("/")[0]
            if self.joint is not None and context is not None and len(bundles.rows) > 1:  # in training
                factor = self.joint.weights.at(dataset, context)
                term = term if isinstance(factor, float) and factor == 1.0 else factor * term
            found[name] = _by_bundle(term, bundles, dataset, f"{where}: the loss of dataset {dataset}")
        return found

    def _absent_terms(
        self, model: Any, bundles: Bundles, rng: jax.Array | None, context: Context | None
    ) -> dict[str, Loss]:
        """Returns the losses of datasets that this step does not take: zeros of weight 0.

        So all programs of a run have the same metrics. Their names are those of a batch with these datasets.
        """
        if not bundles.absent or self.joint is None:
            return {}
        graph, state = nnx.split(model)
        size = _size(bundles)
        zeros: dict[str, Loss] = {}
        for shape in self.joint.shape_specs():
            missing = [name for name in bundles.absent if name in shape and not any(_of(name, key) for key in zeros)]
            if not missing:
                continue
            examples = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shape)

            def terms(examples: Bundles) -> dict[str, Loss]:
                return self._terms(nnx.merge(graph, state), examples, rng, context)

            found = jax.eval_shape(terms, examples)
            wanted = {key: term for key, term in found.items() if any(_of(name, key) for name in missing)}
            zeros |= jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), wanted)
        return zeros

    def _bundles(self, batch: PyTree, method: str) -> Bundles:
        if not isinstance(batch, Bundles):
            raise TaskError(
                f"{type(self).__name__}.{method}: the examples belong to no named dataset, but those of the training "
                "do. Name it, as in engine.Joint({NAME: SOURCE})."
            )
        return batch


def _evaluate(self: JointTask, model: Any, batch: PyTree, context: Context | None) -> Mapping[str, Metric | None]:
    bundles = self._bundles(batch, "evaluate")
    return call(self.task.evaluate, model, _examples(bundles), context=_context(context, bundles))


def _predict(self: JointTask, model: Any, batch: PyTree) -> PyTree:
    return self.task.predict(model, _examples(self._bundles(batch, "predict")))


def _figure(self: JointTask, example: Any, prediction: Mapping[str, Any]) -> Any:
    return self.task.figure(dict(example), prediction)


_OPTIONAL = {"evaluate": _evaluate, "predict": _predict, "figure": _figure}


def adapted(task: Task, joint: "Joint", where: str) -> Task:
    """Returns the Task for batches of a source.

    Its class has the name of the author's, for texts, and those optional methods that the author's class defines.

    Args:
        task: the author's Task, or one that is adapted already, for another source.
        joint: the source.
        where: its config section.

    Raises:
        TaskError: the Task has a method that needs plain batches, or its `batch_spec` does not fit.
    """
    author = task.task if isinstance(task, JointTask) else task
    _check(author, joint, where)
    if isinstance(task, JointTask):
        return task
    kind = type(author)
    own = {name: found for name, found in _OPTIONAL.items() if getattr(kind, name) is not getattr(Task, name)}
    settings = {name: getattr(author, name) for name in ("model_state", "full_precision", "mixes_rows")}
    found = type(kind.__name__, (JointTask,), {**settings, **own, "__doc__": kind.__doc__})()
    found.task, found.joint = author, joint if where == "data" else None
    return found


def _check(task: Task, joint: "Joint", where: str) -> None:
    name = type(task).__name__
    if has_encode(task) or has_own_update(task):
        method = "encode" if has_encode(task) else "update"
        raise TaskError(
            f"{name}.{method}: {where} is engine.Joint, whose batches only `loss` takes. Define loss(self, model, "
            "batch, rng), where batch is a dict of the datasets."
        )
    if (spec := task.batch_spec()) is None:
        return
    if not isinstance(spec, Mapping) or not spec.keys() >= set(joint.names):
        found = ", ".join(map(str, spec)) if isinstance(spec, Mapping) else describe_value(spec)
        raise TaskError(
            f"{name}.batch_spec: found {found}, but {where} is engine.Joint of {', '.join(joint.names)}. Return a dict "
            "with a spec for each dataset."
        )
    for dataset in joint.names:
        check_spec(name, spec[dataset], joint.specs[dataset][-1], f"{where}: dataset {dataset}")


def _of(dataset: str, term: str) -> bool:
    return term.partition("/")[0] == dataset


def _size(bundles: Bundles) -> int:
    return len(jax.tree.leaves(bundles)[0])


def _examples(bundles: Bundles) -> dict[str, PyTree]:
    """Returns the examples of each dataset, arrays `[rows, ...]`; the place of text is left out."""

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    return {
        name: _without_none(examples if bundles.rows[name] == 1 else jax.tree.map(flat, examples))
        for name, examples in bundles.items()
    }


def _without_none(tree: PyTree) -> PyTree:
    if type(tree) is not dict:
        return tree
    return {key: _without_none(value) for key, value in tree.items() if value is not None}


def _keys(rng: jax.Array, bundles: Bundles) -> dict[str, jax.Array]:
    """Returns random keys `[rows]` by dataset, derived from the keys `[bundles]`."""

    def key(one: jax.Array, name: str) -> jax.Array:
        own = jax.random.fold_in(one, zlib.crc32(name.encode()))
        count = bundles.rows[name]
        return own if count == 1 else jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(count))

    return {name: jax.vmap(lambda one, name=name: key(one, name))(rng).reshape(-1) for name in bundles}


def _context(context: Context | None, bundles: Bundles) -> Context | None:
    """Returns the context with keys and mask by dataset."""
    if context is None:
        return None
    found = copy.copy(context)  # dataclasses.replace would read `total_steps`, which a `WatchedContext` records
    mask = context.mask
    by_row = None if mask is None else {name: jnp.repeat(mask, bundles.rows[name]) for name in bundles}
    object.__setattr__(found, "rng", _keys(context.rng, bundles))
    object.__setattr__(found, "mask", by_row)
    return found


def _named(result: object, bundles: Bundles, where: str) -> dict[str, Loss]:
    """Returns the losses by name.

    Raises:
        TaskError: a dataset of the batch has none, or a loss belongs to no such dataset.
    """
    names = sorted(bundles)
    asked = f"Loss.sum({', '.join(f'{name}=...' for name in names)})"
    if isinstance(result, Loss) and len(names) == 1:
        result = Loss.sum(**{names[0]: result})
    elif isinstance(result, Mapping) and result:
        result = Loss.sum(**result)
    if not isinstance(result, LossSum):
        raise TaskError(f"{where} returned {describe_value(result)}. Return {asked}, a loss for each dataset.")
    found = ", ".join(result.terms)
    for term in result.terms:
        if term.partition("/")[0] not in names:
            raise TaskError(
                f"{where} returned a loss {term!r}, but the batch has no dataset of this name. Return {asked}."
            )
    for name in names:
        if not any(_of(name, term) for term in result.terms):
            raise TaskError(
                f"{where} returned no loss of dataset {name}, only {found}. Return {asked}; a dataset that trains "
                f"nothing has 0 * loss, or leave it out of the data."
            )
    return dict(result.terms)


def _by_bundle(loss: Loss, bundles: Bundles, dataset: str, where: str) -> Loss:
    """Returns a loss, and its metrics, with the entries of the examples of a bundle added up."""
    count, size = bundles.rows[dataset], _size(bundles)

    def added(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        if x.ndim and len(x) != size * count:
            raise TaskError(
                f"{where} has {list(x.shape)}, but the batch has {size * count} rows of it. Give one entry for each "
                "row of this dataset: [rows]."
            )
        return x.reshape(size, count, *x.shape[1:]).sum(1) if x.ndim and count > 1 else x

    return jax.tree.map(added, loss)
