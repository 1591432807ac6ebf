"""Shampoo: gradients between inverse roots of their factors (Gupta et al. 2018, arXiv:1802.09568)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.factors import COLUMNS, ROWS, Places, Sides, in_sides, outer_products, product, squares
from engine.optimizers.matrices import Matrices, in_stacks, partitioned, two_dimensions


class ShampooState(NamedTuple):
    """State of the matrices, in float32. A side of more than `largest` has a MaskedNode."""

    step: jax.Array
    """int32: updates so far."""
    rows: PyTree
    """eps I and the sum of g g^T, `[..., rows, rows]`, with the dimensions that index matrices in front."""
    columns: PyTree
    """eps I and the sum of g^T g, `[..., columns, columns]`."""
    rows_root: PyTree
    """Inverse root of `rows`."""
    columns_root: PyTree
    """Inverse root of `columns`."""


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    frequency: int = 10,
    largest: int = 10_000,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    matrices: Matrices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns Shampoo for matrices, and AdamW for the other parameters.

    Shampoo (Gupta et al. 2018, arXiv:1802.09568, Algorithm 1) updates a matrix with L^(-1/4) g R^(-1/4), where L and R
    are eps I and the sums of g g^T and of g^T g so far. If only one side has a factor, its root is -1/2. The sums only
    grow, so updates become smaller, as those of Adagrad. Heavy-ball momentum then adds up the updates.

    The roots are computed in the first step and in each `frequency` steps; other steps do not pay for it. Each matrix
    of a stack of layers, each expert, and each attention kernel has its own factors. On a mesh each device decomposes
    its share of them.

    State: float32 arrays, two of `[rows, rows]` and two of `[columns, columns]` (`ShampooState`), the momentum, and the
    state of `optax.adamw` for the other parameters.

    Args:
        learning_rate: of both parts.
        momentum: decay of the momentum.
        eps: diagonal of the factors at the start.
        weight_decay: decoupled weight decay of both parts, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        frequency: steps between two updates of the roots.
        largest: a side of a matrix with more rows or columns has no factor.
        adam_learning_rate: of AdamW, if not `learning_rate`.
        adam_b1, adam_b2: decays of AdamW.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
    """
    matrices = matrices or two_dimensions
    of_matrices = optax.chain(
        scale_by_shampoo(eps=eps, frequency=frequency, largest=largest, matrices=matrices),
        optax.trace(momentum),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    others = optax.adamw(rate, b1=adam_b1, b2=adam_b2, weight_decay=weight_decay, mask=weight_decay_mask)
    return partitioned(of_matrices, others, matrices)


def scale_by_shampoo(
    *, eps: float = 1e-4, frequency: int = 10, largest: int = 10_000, matrices: Matrices = two_dimensions
) -> optax.GradientTransformation:
    """Returns the part of `shampoo` that makes updates of matrices; all parameters are matrices or masked."""

    def init(params: PyTree) -> ShampooState:
        factors = [squares(params, matrices, side, largest, eps) for side in (ROWS, COLUMNS)]
        roots = [squares(params, matrices, side, largest) for side in (ROWS, COLUMNS)]
        return ShampooState(jnp.zeros((), jnp.int32), *factors, *roots)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, ShampooState]:
        del params
        places = Places(updates, matrices)
        grads, before = places.gradients(), places.sides(state.rows, state.columns)
        factors = [jax.tree.map(jnp.add, x, outer_products(g, x)) for x, g in zip(before, grads, strict=True)]
        old = places.sides(state.rows_root, state.columns_root)
        roots = jax.lax.cond(state.step % frequency == 0, _roots, lambda _, old: old, factors, old)
        made = places.updates([_between(sides, g) for sides, g in zip(roots, grads, strict=True)])
        parts = [places.side(found, side) for found in (factors, roots) for side in (ROWS, COLUMNS)]
        return made, ShampooState(state.step + 1, *parts)

    return optax.GradientTransformation(init, update)


def _roots(factors: Sequence[Sides], old: Sequence[Sides]) -> list[Sides]:
    """Returns the inverse roots of all factors; each device of a mesh computes its share."""
    flat: list[jax.Array] = []
    found: dict[int, list[jax.Array]] = {}
    for count in (1, 2):  # sides with a factor
        some = [x for sides in factors for x in sides.values() if len(sides) == count]
        found[count] = in_stacks(inverse_root(2 * count), some) if some else []
    for sides in factors:
        flat += [found[len(sides)].pop(0) for _ in sides]
    return in_sides(old, flat)


def _between(roots: Sides, g: jax.Array) -> jax.Array:
    """Returns matrices multiplied with the roots from both sides."""
    g = product(roots[ROWS], g) if ROWS in roots else g
    return product(g, roots[COLUMNS]) if COLUMNS in roots else g


def inverse_root(order: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of symmetric matrices `[matrices, n, n]` that gives their power -1 / order.

    Eigenvalues below the rounding of the largest count as that rounding; those of padding, which are 0, as 1.
    """

    def root(factor: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(factor)
        largest = values[..., -1:]
        values = jnp.maximum(values, largest * jnp.finfo(jnp.float32).eps)
        powers = jnp.where(largest > 0, values, 1.0) ** (-1 / order)
        return product(vectors * powers[..., None, :], vectors.mT)

    return root
