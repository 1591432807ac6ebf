"""Training metrics: equal results for any number of microbatches and on any mesh, from sums alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import Loss, Mean, metrics
from engine.base.errors import TaskError
from engine.config.schema import MeshSpec
from engine.metrics.pairs import MAX_SUMS, TrainingMetrics, pairs_of
from tests import zoo

CLASSES = ("a", "b", "c", "d")


@dataclasses.dataclass
class Training(zoo.Classify):
    """Metrics of the examples alone, so that they can be computed in numpy."""

    def loss(self, model, batch, rng):
        found = {
            "rms": metrics.RootMeanSquare.of(batch["x"], batch["valid"]),
            "confusion": metrics.ConfusionMatrix.of(3 - batch["y"], batch["y"], CLASSES, batch["valid"]),
            "mean": Mean.of(batch["x"], batch["valid"]),
        }
        return Loss.of(super().loss(model, batch, rng).total, batch["valid"], found)


@pytest.mark.slow
def test_training_metrics_of_microbatches_on_a_mesh_equal_numpy():
    program = zoo.program(Training(), accumulate=2, mesh=MeshSpec(data=2, fsdp=4))
    assert program.task_metrics == ("loss", *(f"confusion#{i}" for i in range(9)), "mean", "rms#0")
    assert program.training_metrics.names == ("confusion", "loss", "mean", "rms")
    _, values = zoo.run(program, zoo.batches(2))
    found = program.training_metrics.results(program.metric_names, values.astype(np.float64).sum(0))
    x, y, valid = (np.concatenate([batch[name] for batch in zoo.batches(2)]) for name in ("x", "y", "valid"))
    assert found["rms"] == pytest.approx(np.sqrt(np.mean(x[valid > 0] ** 2)), rel=1e-6)
    expected = np.zeros((4, 4))
    np.add.at(expected, (y[valid > 0], 3 - y[valid > 0]), 1)
    np.testing.assert_array_equal(found["confusion/matrix"], expected)


def test_rows_of_weight_zero_do_not_count():
    found = pairs_of({"m": metrics.Sum(jnp.array([1.0, jnp.nan]))}, jnp.array([1.0, 0.0]))
    assert found["m#0"].tolist() == [1, 0]


def test_more_than_ten_rows_keep_their_order():
    class Steps(metrics.Metric):
        counts: jax.Array

        def compute(self):
            return self.counts

    metric = {"m": Steps(jnp.arange(46.0).reshape(2, 23))}
    subject, pairs = TrainingMetrics(metric), pairs_of(metric, None)
    found = subject.results(pairs, np.array(list(pairs.values())))
    np.testing.assert_array_equal(found["m"], np.arange(23) * 2 + 23)


def test_metric_with_too_many_sums_is_an_error():
    large = metrics.ConfusionMatrix.of(jnp.zeros(2), jnp.zeros(2), 33)
    with pytest.raises(TaskError, match=f"metric 'm' of the loss has 1090 sums, allowed are {MAX_SUMS}"):
        TrainingMetrics({"m": large})
    with pytest.raises(TaskError, match=r"Collects.loss: metric 'q' collects `values` of all examples"):
        zoo.program(Collects())


class Collects(zoo.Classify):
    """A loss with a metric that only an evaluation can have."""

    def loss(self, model, batch, rng):
        return Loss.of(super().loss(model, batch, rng).total, None, {"q": metrics.Quantiles.of(batch["x"])})
