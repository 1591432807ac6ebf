"""A step on several datasets computes what a program written by hand computes, on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Joint, Loss, Task
from engine.base.errors import DataError, TaskError
from engine.config.schema import MeshSpec
from engine.data.batches import Batches
from engine.data.source import example_spec
from engine.joint.task import adapted
from engine.training.task import for_sources
from tests import zoo
from tests.joint import twin

BUNDLES = 8
SGD = {"target": "optax.sgd", "learning_rate": 0.1, "clip_norm": None}


def program(task=None, source=None, **settings):
    """The program of a Task on several datasets, for batches of 8 bundles."""
    source = source or twin.joint()
    task = adapted(task or twin.Twin(), source, "data")
    return zoo.program(task, batch_size=BUNDLES, example=example_spec(source), **{**SGD, **settings})


@functools.cache
def host_batches(count: int = 3):
    found = Batches(twin.joint(), BUNDLES, 3, True)
    return [found[n].examples for n in range(count)]


@functools.cache
def alone():
    """Three steps with dropout on one device."""
    return zoo.run(program(twin.Twin(dropout=0.3)), host_batches())


def test_steps_equal_a_program_written_by_hand():
    found = program()
    state, metrics = zoo.run(found, host_batches())
    params = jax.device_get(dict(found.init().params))

    def dense(params, name, x):
        return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]

    @jax.jit
    def loss(params, boxes, lanes):
        logits = dense(params, "classes", jnp.tanh(dense(params, "trunk", boxes["x"])))
        entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), boxes["label"][:, None], 1)[:, 0]
        points = dense(params, "offset", jnp.tanh(dense(params, "trunk", lanes["picture"])))
        of_boxes = (entropy * boxes["valid"]).sum() / boxes["valid"].sum()
        return of_boxes + 0.5 * jnp.square(points - lanes["points"]).mean()

    losses = []
    for batch in host_batches():
        boxes = {name: x.reshape(2 * BUNDLES, *x.shape[2:]) for name, x in batch["boxes"].items()}
        value, grads = jax.value_and_grad(loss)(params, boxes, batch["lanes"])
        losses.append(value)
        params = jax.tree.map(lambda x, d: x - 0.1 * d, params, grads)
    np.testing.assert_allclose(zoo.losses(metrics), np.array(losses), rtol=1e-6)
    zoo.assert_close(dict(state.params), params, 1e-6)


@pytest.mark.parametrize("mesh", [None, MeshSpec(data=2)])
def test_microbatches_leave_the_result_as_it_is(mesh):
    """tests/models/meshes_test.py has other meshes."""
    found = program(twin.Twin(dropout=0.3), mesh=mesh, devices=None if mesh is None else 2, accumulate=2)
    state, metrics = zoo.run(found, host_batches())
    wanted, values = alone()
    np.testing.assert_allclose(zoo.losses(metrics), zoo.losses(values), rtol=1e-6)
    zoo.assert_close(dict(state.params), dict(wanted.params), 1e-6)


def test_examples_of_a_bundle_have_different_random_numbers():
    class Noise(Task):
        def build(self, rngs):
            return nnx.Linear(1, 1, rngs=rngs)

        def loss(self, model, batch, rng):
            drawn = {name: jax.vmap(jax.random.uniform)(keys) for name, keys in rng.items()}
            all_drawn = jnp.concatenate([*drawn.values()])
            equal = {name: (x[:, None] == all_drawn).sum(1) for name, x in drawn.items()}  # each equals itself
            return Loss.sum(**{name: Loss.of(count.astype(jnp.float32)) for name, count in equal.items()})

    found = program(Noise())
    _, metrics = zoo.run(found, host_batches(1))
    means = dict(zip(found.metric_names, metrics[0], strict=True))
    assert means["boxes"][0] == 2 * BUNDLES and means["lanes"][0] == BUNDLES


def test_factors_of_the_source_scale_losses_in_training_as_the_schedule_says():
    source = twin.joint(weights={"boxes": 2.0, "lanes": {"0 steps": 0.0, "2 steps": 1.0}})
    found = program(twin.Twin(), source)
    _, metrics = zoo.run(found, host_batches())
    plain = program()
    _, unweighted = zoo.run(plain, host_batches(1))

    def means(program, values):
        return {name: total / weight for name, (total, weight) in zip(program.metric_names, values, strict=True)}

    first, wanted = means(found, metrics[0]), means(plain, unweighted[0])
    assert first["boxes"] == pytest.approx(2 * wanted["boxes"], rel=1e-6) and first["lanes"] == 0
    assert first["loss"] == first["boxes"] and first["error"] == pytest.approx(wanted["error"], rel=1e-6)
    assert means(found, metrics[1])["lanes"] > 0


@dataclasses.dataclass
class Returns(twin.Twin):
    """Returns something else than the losses of both datasets."""

    what: str = ""

    def loss(self, model, batch, rng):
        boxes, lanes = super().loss(model, batch, rng).terms.values()
        return {
            "left out": Loss.sum(boxes=boxes),
            "unknown": Loss.sum(boxes=boxes, lanes=lanes, lines=lanes),
            "plain": boxes,
            "swapped": Loss.sum(boxes=lanes, lanes=boxes),
            "several": Loss.sum(boxes=boxes, lanes=Loss.sum(near=lanes, far=Loss(lanes.total, lanes.weight))),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("left out", r"Returns.loss returned no loss of dataset lanes, only boxes. Return Loss.sum\(boxes=..., lanes"),
        ("unknown", r"Returns.loss returned a loss 'lines', but the batch has no dataset of this name"),
        ("plain", r"Returns.loss returned .*Loss.*. Return Loss.sum\(boxes=..., lanes=...\), a loss for each"),
        ("swapped", r"the loss of dataset boxes has \[8\], but the batch has 16 rows of it"),
    ],
)
def test_loss_that_does_not_fit_the_datasets_is_refused(what, text):
    with pytest.raises(TaskError, match=text):
        program(Returns(what=what))


def test_dataset_may_have_several_losses():
    found = program(Returns(what="several"))
    assert {"boxes", "lanes/near", "lanes/far", "accuracy", "error"} <= set(found.metric_names)


class Contrastive(Task):
    def encode(self, model, batch, rng):
        return batch

    def loss_of(self, encoded, batch, mask):
        return Loss.of(encoded)


@dataclasses.dataclass
class Specified(twin.Twin):
    """Says what its batches hold."""

    names: tuple[str, ...] = ("boxes", "lanes")

    def batch_spec(self):
        spec = {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in ("x", "picture")}
        return dict.fromkeys(self.names, spec)


def test_task_that_cannot_take_the_datasets_is_refused():
    with pytest.raises(TaskError, match=r"Contrastive.encode: data is engine.Joint, whose batches only `loss` takes"):
        adapted(Contrastive(), twin.joint(), "data")
    with pytest.raises(TaskError, match=r"batch_spec: found boxes, but data is engine.Joint of boxes, lanes"):
        adapted(Specified(names=("boxes",)), twin.joint(), "data")
    with pytest.raises(TaskError, match=r"data: dataset boxes: label: Specified.batch_spec says"):
        adapted(Specified(), twin.joint(), "data")


def test_evaluations_read_one_named_dataset():
    task, one = twin.Twin(), Joint({"lanes": twin.lanes()})
    found = for_sources(task, {"data": twin.joint(), "evaluations.lanes.data": one})
    assert type(found).__name__ == "Twin" and getattr(found, "width") == task.width  # noqa: B009
    assert for_sources(task, {"data": twin.boxes()}) is task
    with pytest.raises(DataError, match=r"evaluations.lanes.data: the examples belong to no named dataset, but those"):
        for_sources(task, {"data": twin.joint(), "evaluations.lanes.data": twin.lanes()})
    with pytest.raises(DataError, match=r"evaluations.both.data: found engine.Joint of boxes x 2, lanes"):
        for_sources(task, {"evaluations.both.data": twin.joint()})
