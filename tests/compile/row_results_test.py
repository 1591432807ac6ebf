"""Metrics become arrays by row, and sums with the weight by which they grow with the rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import Loss, Mean, metrics
from engine.compile.row_results import losses
from engine.data.context import Context
from tests import zoo

ROWS = 4
CONTEXT = Context(0, 0.0, 1, jax.random.split(jax.random.key(0), ROWS), jnp.ones(ROWS, bool))


class Parts(zoo.Classify):
    def loss(self, model, batch, rng):
        values = batch["x"][:, 0]
        found = {
            "mean": Mean(values.sum(), jnp.float32(ROWS)),
            "sum": metrics.Sum(values),
            "all": metrics.Sum(values.sum()),
        }
        return Loss.of(values, metrics=found)


def test_fields_of_metrics_are_arrays_by_row_or_sums():
    examples = zoo.examples(ROWS)
    model: Any = None
    found = losses(Parts(), model, examples, CONTEXT)
    x = examples["x"][:, 0]
    assert sorted(found.rows) == ["loss.total", "loss.weight", "sum.total"]
    np.testing.assert_array_equal(found.rows["sum.total"], x)
    assert sorted(found.sums) == ["all.total", "mean"]
    np.testing.assert_allclose(found.sums["mean"], [x.sum(), ROWS], rtol=1e-6)
    np.testing.assert_allclose(found.sums["all.total"], [x.sum(), ROWS], rtol=1e-6)
