"""Routing: the experts of each token, the losses of the router, and the assignment of tokens to rows by expert.

A *choice* is a (token, expert) pair. Choice `rank * time + position` of a sequence is the expert of that rank for that
position, so that later ranks are dropped first. A *group* holds the choices of one expert, in as many rows as its
capacity; further choices are dropped. Tokens move to rows and back by gathers alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from engine.layers.rematerialization import recomputed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routes:
    """The experts of each token of a batch, and the losses of the router."""

    experts: jax.Array
    """int32 `[batch, time, top_k]`, the most probable first; for padding, the number of experts."""
    weights: jax.Array
    """float32 `[batch, time, top_k]`, the factors of the experts' outputs: the probabilities of the chosen experts,
    divided by their sum. For `top_k` 1 they are not divided, since 1 would give the router no gradient."""
    losses: dict[str, jax.Array]
    """"balance" and "router_z": `[batch]` float32, summed over the tokens of a sequence."""


def route(x: jax.Array, kernel: jax.Array, top_k: int, weight: jax.Array) -> Routes:
    """Returns the `top_k` experts with the largest probabilities for each token, computed in float32.

    The balance loss of a sequence is tokens * experts * sum_e(f_e * P_e), where f_e is the fraction of choices for
    expert e before any are dropped, and P_e the mean probability of e (Fedus et al. 2022, equations 4 to 6, for each
    sequence and several choices). The router's z-loss is logsumexp(logits)^2 (Zoph et al. 2022, equation 5).

    Args:
        x: `[batch, time, features]`.
        kernel: `[features, experts]`.
        top_k: experts per token.
        weight: float32 `[batch, time]`, the weight of each token in the losses; 0 for padding, which is ignored.
    """
    # The backward pass keeps a half-precision input as it is, not as float32.
    logits = _logits(x, kernel) if x.dtype.itemsize >= 4 else recomputed(_logits, x, kernel)
    probabilities = jax.nn.softmax(logits)
    experts = _largest(probabilities, top_k)
    chosen = experts[..., None] == jnp.arange(logits.shape[-1])  # [batch, time, top_k, experts]
    # A masked sum, since the gradient of a gather would be a scatter.
    best = jnp.where(chosen, probabilities[..., None, :], 0).sum(-1)
    real = weight[..., None] != 0
    tokens = weight.sum(1)
    share = jnp.einsum("bt,btke->be", weight, chosen.astype(jnp.float32)) / top_k
    load = jnp.einsum("bt,bte->be", weight, probabilities)
    balance = logits.shape[-1] * (share * load).sum(-1) / jnp.where(tokens != 0, tokens, 1)
    weights = best / best.sum(-1, keepdims=True) if top_k > 1 else best
    return Routes(
        experts=jnp.where(real, experts, logits.shape[-1]),
        weights=jnp.where(real, weights, 0),
        losses={"balance": balance, "router_z": (weight * jax.nn.logsumexp(logits, axis=-1) ** 2).sum(1)},
    )


def _logits(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest")


def _largest(x: jax.Array, top_k: int) -> jax.Array:
    """Returns the indices `[..., top_k]` of the largest entries in descending order; of equal entries, the first first.

    It takes one maximum after another, since XLA gathers the whole batch on each device for `jax.lax.top_k`.
    """
    found = []
    for _ in range(top_k):
        found.append(jnp.argmax(x, axis=-1))
        x = jnp.where(found[-1][..., None] == jnp.arange(x.shape[-1]), -jnp.inf, x)
    return jnp.stack(found, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowAssignment:
    """Assignment of choices to rows, group after group: a table for each direction, so that no scatter is needed."""

    row: jax.Array
    """`[choices]`: row of each choice; the number of rows for a dropped choice."""
    choice: jax.Array
    """`[rows]`: choice in each row; the number of choices for an empty row."""

    def gather(self, x: jax.Array) -> jax.Array:
        """Returns `[rows, features]` of `x` `[tokens, features]`; an empty row is 0."""
        tokens, choices = x.shape[0], self.row.shape[0]
        token = jnp.where(self.choice < choices, self.choice % tokens, tokens)
        return _take(x, token, self.row.reshape(-1, tokens).T)

    def combine(self, y: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns `[tokens, features]`, the sum of each token's rows of `y` times `weights` `[tokens, top_k]`.

        The sum is float32, the result has the dtype of `y`. A dropped choice adds 0.
        """
        tokens, top_k = weights.shape
        parts = _take(y, self.row, self.choice[:, None]).reshape(top_k, tokens, -1)
        # The backward pass keeps parts in half precision as they are, not as float32.
        return _weighted_sum(parts, weights) if y.dtype.itemsize >= 4 else recomputed(_weighted_sum, parts, weights)


def _weighted_sum(parts: jax.Array, weights: jax.Array) -> jax.Array:
    return (parts * weights.T[..., None]).sum(0).astype(parts.dtype)


def group_sizes(experts: jax.Array, count: int) -> jax.Array:
    """Returns the number of entries of `experts` for each expert, `[count]`."""
    return (experts.reshape(-1, 1) == jnp.arange(count)).sum(0)


def assign_rows(
    experts: jax.Array, sizes: jax.Array, starts: jax.Array, capacity: jax.Array, rows: int
) -> RowAssignment:
    """Returns a row in its expert's group for each choice, in the order of (rank, position) up to the capacity.

    Args:
        experts: `[tokens, top_k]`; a number beyond the groups gets no row.
        sizes: `[groups]`, result of `group_sizes`.
        starts: `[groups]`, first row of each group, ascending.
        capacity: `[groups]`, rows of each group.
        rows: total number of rows.
    """
    flat = experts.T.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    first = jnp.cumsum(sizes) - sizes  # first index of each group in `order`
    group = jnp.minimum(flat, sizes.shape[0] - 1)
    rank = jnp.argsort(order) - first[group]  # index of each choice in its group
    row = jnp.where((flat < sizes.shape[0]) & (rank < capacity[group]), starts[group] + rank, rows)
    index = jnp.arange(rows)
    group = (index[:, None] >= starts).sum(1) - 1
    rank = index - starts[group]
    filled = rank < jnp.minimum(sizes, capacity)[group]
    choice = jnp.where(filled, order[jnp.where(filled, first[group] + rank, 0)], flat.shape[0])
    return RowAssignment(row, choice)


@jax.custom_vjp
def _take(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """Returns `x[index]`, 0 beyond the end. `back` `[rows of x, n]`: new indices of each row, for the gradient."""
    return x.at[index].get(mode="fill", fill_value=0)


def _take_forward(x: jax.Array, index: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _take(x, index, back), back


def _take_backward(back: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    rows = g.at[back].get(mode="fill", fill_value=0)
    return rows.sum(1, dtype=jnp.float32).astype(g.dtype), None, None


_take.defvjp(_take_forward, _take_backward)
