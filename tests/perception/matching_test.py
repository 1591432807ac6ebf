import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from engine.perception import match

RNG = np.random.default_rng(0)
RUN = jax.jit(match)


@pytest.mark.parametrize(("queries", "targets"), [(9, 5), (4, 6)])
def test_cost_equals_scipys_with_padding_and_with_costs_that_are_not_finite(queries, targets):
    batch = 24
    cost = RNG.normal(0, 10, (batch, queries, targets)).astype(np.float32)
    cost[::3] = RNG.integers(0, 3, cost[::3].shape)  # many matchings cost the same
    valid, query_valid = RNG.random((batch, targets)) < 0.7, RNG.random((batch, queries)) < 0.7
    valid[0], query_valid[1] = False, False
    cost[2, 1, :3], cost[5] = [np.nan, np.inf, -np.inf], np.nan
    found = RUN(cost, valid, query_valid)
    for row in range(batch):
        part = cost[row][query_valid[row]][:, valid[row]]
        part = np.where(np.isfinite(part), part, part[np.isfinite(part)].max(initial=-100))
        rows, columns = linear_sum_assignment(part)
        matched, chosen = np.asarray(found.valid[row]), np.asarray(found.queries[row])
        pairs = chosen[matched]
        assert len(set(pairs)) == len(pairs) == len(rows)
        assert query_valid[row][pairs].all() and not (matched & ~valid[row]).any() and not chosen[~matched].any()
        assert found.unmatched[row] == valid[row].sum() - len(rows)
        kept = np.cumsum(query_valid[row])[pairs] - 1, np.cumsum(valid[row])[np.flatnonzero(matched)] - 1
        total = part[kept].sum()
        np.testing.assert_allclose(total, part[rows, columns].sum(), rtol=1e-5, atol=1e-4)


def test_loss_of_the_pairs_is_differentiable():
    def total(cost):
        return jnp.take_along_axis(cost, match(cost).queries[:, None], 1).sum()

    jax.make_jaxpr(jax.grad(total))(jnp.zeros((1, 2, 2)))  # JAX has no gradient of a loop of unknown length
