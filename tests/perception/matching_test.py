import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from engine.perception import match

RNG = np.random.default_rng(0)
RUN = jax.jit(match)


@pytest.mark.parametrize(("queries", "targets"), [(9, 5), (4, 6)])
def test_cost_equals_scipys_with_padding_of_queries_and_targets(queries, targets):
    batch = 24
    cost = RNG.normal(0, 10, (batch, queries, targets)).astype(np.float32)
    cost[::3] = RNG.integers(0, 3, cost[::3].shape)  # many matchings cost the same
    valid, query_valid = RNG.random((batch, targets)) < 0.7, RNG.random((batch, queries)) < 0.7
    valid[0], query_valid[1] = False, False
    found = RUN(cost, valid, query_valid)
    for row in range(batch):
        part = cost[row][query_valid[row]][:, valid[row]]
        rows, columns = linear_sum_assignment(part)
        matched, chosen = np.asarray(found.valid[row]), np.asarray(found.queries[row])
        pairs = chosen[matched]
        assert len(set(pairs)) == len(pairs) == len(rows)
        assert query_valid[row][pairs].all() and not (matched & ~valid[row]).any() and not chosen[~matched].any()
        assert found.unmatched[row] == valid[row].sum() - len(rows)
        total = cost[row][pairs, np.flatnonzero(matched)].sum()
        np.testing.assert_allclose(total, part[rows, columns].sum(), rtol=1e-5, atol=1e-4)


def test_costs_that_are_not_finite_end_and_are_avoided():
    cost = jnp.array([[[jnp.nan, 1.0], [2.0, jnp.inf], [-jnp.inf, 5.0]]] * 2).at[1].set(jnp.nan)
    found = RUN(cost)
    assert found.queries[0].tolist() == [1, 0] and found.valid.all()
    assert len(set(found.queries[1].tolist())) == 2


def test_gradient_flows_through_the_costs_of_the_pairs_only():
    cost = jnp.array([[[1.0, 9.0], [9.0, 2.0]]])

    def total(cost):
        found = match(cost)
        return jnp.take_along_axis(cost, found.queries[:, None], 1).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(cost), [[[1, 0], [0, 1]]])
