"""Losses that compare all rows of a batch: exact on any mesh and with any number of microbatches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Task
from engine.base.errors import TaskError
from engine.config.schema import MeshSpec
from engine.data.batch import Batch
from engine.training.task import check_methods
from tests import zoo
from tests.contrasting import Contrast

TOLERANCE = 1e-5
MESHES = [MeshSpec(data=8), MeshSpec(data=2, fsdp=4), MeshSpec(data=4, tensor=2)]


class TwoLosses(Contrast):
    """A sum of two losses with weights of their own."""

    def loss_of(self, encoded, batch, mask):
        return Loss.sum(
            pairs=super().loss_of(encoded, batch, mask),
            norm=0.1 * Loss.of(encoded["left"][:, 0] ** 2, mask & (encoded["label"] > 0)),
        )


@functools.cache
def trained(task: str, mesh: MeshSpec | None, accumulate: int) -> Any:
    """Returns the parameters after two steps of sgd, and the metrics of the second step."""
    tasks = {"clip": Contrast(), "siglip": Contrast(sigmoid=True), "sum": TwoLosses()}
    settings: dict[str, Any] = dict(batch_size=32, target="optax.sgd", learning_rate=0.1, clip_norm=None)
    program = zoo.program(tasks[task], mesh=mesh, accumulate=accumulate, **settings)
    state, metrics = zoo.run(program, zoo.batches(2, 32))
    return jax.device_get(state.params), metrics[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "accumulate"), [("siglip", 4), ("sum", 2)])
def test_microbatches_give_the_result_of_the_whole_batch(task, accumulate):
    expected, metrics = trained(task, None, 1)
    found, same = trained(task, None, accumulate)
    zoo.assert_close(expected, found, TOLERANCE)
    np.testing.assert_allclose(same[:-3], metrics[:-3], rtol=1e-5)  # without the metrics of the engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "mesh", "accumulate"),
    [("clip", MESHES[0], 1), ("clip", MESHES[0], 4), ("siglip", MESHES[1], 4), ("clip", MESHES[2], 2)],
)
def test_meshes_give_the_result_of_one_device(task, mesh, accumulate):
    zoo.assert_close(trained(task, None, 1)[0], trained(task, mesh, accumulate)[0], TOLERANCE)


def gradient_without_the_engine(task: Contrast, params: Any, graph: nnx.GraphDef, batch: Any) -> Any:
    """Returns the gradient of the mean loss of a batch, by jax.grad over the whole batch."""

    def mean(params):
        loss: Any = task.loss_of(
            task.encode(nnx.merge(graph, params), batch, None), batch, jnp.ones(len(batch["y"]), bool)
        )
        return loss.total.sum() / loss.weight.sum()

    return jax.grad(mean)(params)


@pytest.mark.slow
def test_first_update_is_the_gradient_of_the_whole_batch_without_the_engine():
    task, [batch] = Contrast(), zoo.batches(1, 16)
    program = zoo.program(
        NoDropout(), batch_size=16, accumulate=4, target="optax.sgd", learning_rate=1.0, clip_norm=None
    )
    before = jax.device_get(program.init().params)
    after = jax.device_get(zoo.run(program, [batch])[0].params)
    model = program.spec.model.module(before, {}, None)
    graph, params = nnx.split(model, nnx.Param)
    gradient = dict(nnx.to_flat_state(gradient_without_the_engine(task, params, graph, batch)))
    for path, x in gradient.items():
        name = "/".join(map(str, path))
        np.testing.assert_allclose(before[name] - after[name], x.get_value(), atol=TOLERANCE, rtol=1e-4)


class NoDropout(Contrast):
    def encode(self, model, batch, rng):
        return super().encode(model, batch, None)


def test_row_that_could_not_be_read_is_no_negative():
    program = zoo.program(NoDropout(), batch_size=16, skip_bad=True)
    [examples] = zoo.batches(1, 16)
    weight = np.ones(16, np.float32)
    weight[3] = 0
    _, metrics = zoo.run(program, [Batch(examples, weight)])
    examples["x"][3] = 100.0
    _, other = zoo.run(program, [Batch(examples, weight)])
    np.testing.assert_array_equal(metrics[0, 0], other[0, 0])
    assert metrics[0, 0, 1] == 15


def test_arrays_without_rows_are_refused():
    class Scalar(Contrast):
        def encode(self, model, batch, rng):
            return {"scale": model.temperature.get_value()}

    with pytest.raises(TaskError, match=r"Scalar.encode: scale is float32\[\] for a batch of 16 rows. Return arrays"):
        zoo.program(Scalar())


def test_one_of_the_two_methods_or_a_loss_beside_them_is_refused():
    class Half(Task):
        def encode(self, model, batch, rng):
            return {}

    class Both(Contrast):
        def loss(self, model, batch, rng):
            return Loss.of(batch["x"])

    with pytest.raises(TaskError, match=r"Half has no loss_of\(self, encoded, batch, mask\)"):
        check_methods(Half())
    with pytest.raises(TaskError, match="Both defines loss and encode"):
        check_methods(Both())


def test_collective_over_a_mesh_axis_is_answered_with_advice():
    class Gathered(zoo.Classify):
        def loss(self, model, batch, rng):
            return Loss.of(jax.lax.all_gather(model(batch["x"]), "data"))

    with pytest.raises(TaskError, match=r"Gathered.loss: .*unbound axis name.*needs no collective.*define encode"):
        zoo.program(Gathered())
