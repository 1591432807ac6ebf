"""One-to-one matching of queries and targets of least cost, as in DETR (Carion et al. 2020, arXiv:2005.12872).

Optax has the Hungarian algorithm for one matrix. Here each device matches its own examples: the loops of the algorithm
would otherwise ask all devices after each round whether to continue.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.perception.per_device import per_device


class Matched(NamedTuple):
    """The query of each target.

    `queries` is int32 `[batch, targets]`, and 0 where `valid`, bool `[batch, targets]`, is False: for padding, and for
    targets without a query. `unmatched` is int32 `[batch]`: targets for which too few queries are left.
    """

    queries: jax.Array
    valid: jax.Array
    unmatched: jax.Array


def match(cost: jax.Array, valid: jax.Array | None = None, query_valid: jax.Array | None = None) -> Matched:
    """Returns the matching whose total cost is least, with one query for each target and at most one for each query.

    The time of an example grows with targets² x queries, in a loop that is not parallel. Costs that are not finite
    count as the largest finite cost, so that the loop ends. The matching has no gradient: compute the loss from its
    pairs.

    Args:
        cost: `[batch, queries, targets]`, of any sign.
        valid: bool `[batch, targets]`: False for padding.
        query_valid: bool `[batch, queries]`: False for queries that match nothing.
    """
    batch, queries, targets = cost.shape
    valid = jnp.ones((batch, targets), bool) if valid is None else valid
    query_valid = jnp.ones((batch, queries), bool) if query_valid is None else query_valid
    return Matched(*per_device(jax.vmap(_match), cost.astype(jnp.float32), valid, query_valid))


def _match(cost: jax.Array, valid: jax.Array, query_valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    queries, targets = cost.shape
    missing = max(targets - queries, 0)
    cost, query_valid = jnp.pad(cost, ((0, missing), (0, 0))), jnp.pad(query_valid, (0, missing))
    known = query_valid[:, None] & valid & jnp.isfinite(cost)
    low, high = cost.min(initial=jnp.inf, where=known), cost.max(initial=-jnp.inf, where=known)
    low, high = (jnp.where(known.any(), limit, 0) for limit in (low, high))
    cost = jnp.where(jnp.isfinite(cost), cost, high) - low
    # A query that may not match costs more than any matching of the others. Padding costs 0 for every query, which
    # changes no choice of the other targets.
    cost = jnp.where(query_valid[:, None], cost, (high - low + 1) * (targets + 1))
    rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid, cost, 0))
    found = jnp.zeros(targets, jnp.int32).at[columns].set(rows.astype(jnp.int32))
    matched = valid & query_valid[found]
    return jnp.where(matched, found, 0), matched, (valid & ~matched).sum(dtype=jnp.int32)
