"""SOAP: Adam in the eigenbases of Shampoo's preconditioner (Vyas et al. 2024, arXiv:2409.11321)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.factors import COLUMNS, ROWS, Places, Sides, in_sides, outer_products, product, squares
from engine.optimizers.matrices import Matrices, MatrixForm, in_stacks, partitioned, two_dimensions

REGULARIZER = 1e-30
"""Added to the diagonal before the first decomposition, as in the authors' code."""
type Parts = tuple[list[Sides], list[jax.Array], list[jax.Array]]
"""Bases, first and second moments of each parameter."""


class SoapState(NamedTuple):
    """State of the matrices, in float32. A side of more than `largest` has a MaskedNode."""

    step: jax.Array
    """int32: updates so far."""
    mu: PyTree
    """First moment in the eigenbases, like each parameter."""
    nu: PyTree
    """Second moment in the eigenbases, like each parameter."""
    rows: PyTree
    """Moving average of g g^T, `[..., rows, rows]`, with the dimensions that index matrices in front."""
    columns: PyTree
    """Moving average of g^T g, `[..., columns, columns]`."""
    rows_basis: PyTree
    """Eigenvectors of `rows`, as columns."""
    columns_basis: PyTree
    """Eigenvectors of `columns`, as columns."""


def soap(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    weight_decay_mask: Any = None,
    frequency: int = 10,
    largest: int = 10_000,
    matrices: Matrices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns SOAP for matrices, and AdamW for the other parameters.

    SOAP (Vyas et al. 2024, arXiv:2409.11321, Algorithm 3) runs Adam on the gradient of a matrix in the eigenbases of
    the moving averages of g g^T and g^T g, the factors of Shampoo's preconditioner. As in the authors' code, the first
    step only computes the bases, with a decomposition, and changes no matrix; each `frequency` steps a QR
    decomposition of one power iteration renews them. The weight decay is that of AdamW.

    Each matrix of a stack of layers, each expert, and each attention kernel has its own bases. On a mesh each device
    decomposes its share of the factors.

    State: float32 arrays, two like a matrix, and two of `[rows, rows]` and of `[columns, columns]` (`SoapState`); the
    state of `optax.adamw` for the other parameters.

    Args:
        learning_rate: of both parts.
        b1: decay of the first moment.
        b2: decay of the second moment and of the factors.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay of both parts, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        frequency: steps between two updates of the bases.
        largest: a side of a matrix with more rows or columns is not rotated.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
    """
    matrices = matrices or two_dimensions
    of_matrices = optax.chain(
        scale_by_soap(b1=b1, b2=b2, eps=eps, frequency=frequency, largest=largest, matrices=matrices),
        optax.add_decayed_weights(lambda step: jnp.where(step == 0, 0.0, weight_decay), weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=weight_decay_mask)
    return partitioned(of_matrices, others, matrices)


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """The matrices of one parameter, `[matrices, rows, columns]`, and their state."""

    form: MatrixForm
    mu: jax.Array
    nu: jax.Array
    factors: Sides
    bases: Sides

    def rotate(self, x: jax.Array) -> jax.Array:
        """Returns matrices in the eigenbases."""
        x = product(self.bases[ROWS].mT, x) if ROWS in self.bases else x
        return product(x, self.bases[COLUMNS]) if COLUMNS in self.bases else x

    def rotate_back(self, x: jax.Array) -> jax.Array:
        """Returns matrices of the eigenbases in the basis of the parameter."""
        x = product(self.bases[ROWS], x) if ROWS in self.bases else x
        return product(x, self.bases[COLUMNS].mT) if COLUMNS in self.bases else x


def scale_by_soap(
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    frequency: int = 10,
    largest: int = 10_000,
    matrices: Matrices = two_dimensions,
) -> optax.GradientTransformation:
    """Returns the part of `soap` that makes updates of matrices; all parameters are matrices or masked."""

    def init(params: PyTree) -> SoapState:
        moments = [optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(2)]
        sides = [squares(params, matrices, side, largest) for side in (ROWS, COLUMNS, ROWS, COLUMNS)]
        return SoapState(jnp.zeros((), jnp.int32), *moments, *sides)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, SoapState]:
        del params
        places = Places(updates, matrices)
        before = _parameters(places, state)
        steps = [_adam(x, g, state.step, (b1, b2, eps)) for x, g in zip(before, places.gradients(), strict=True)]
        after = _refresh([each for each, _ in steps], state.step, frequency)
        factors, bases = [each.factors for each in after], [each.bases for each in after]
        new = SoapState(
            step=state.step + 1,
            mu=places.tree([each.form.join(each.mu) for each in after]),
            nu=places.tree([each.form.join(each.nu) for each in after]),
            rows=places.side(factors, ROWS),
            columns=places.side(factors, COLUMNS),
            rows_basis=places.side(bases, ROWS),
            columns_basis=places.side(bases, COLUMNS),
        )
        return places.updates([direction for _, direction in steps]), new

    return optax.GradientTransformation(init, update)


def _parameters(places: Places, state: SoapState) -> list[_Parameter]:
    """Returns the state of each parameter."""
    moments = [places.leaves(state.mu), places.leaves(state.nu)]
    factors = places.sides(state.rows, state.columns)
    bases = places.sides(state.rows_basis, state.columns_basis)
    return [
        _Parameter(form, form.split(mu), form.split(nu), factor, basis)
        for form, mu, nu, factor, basis in zip(places.forms, *moments, factors, bases, strict=True)
    ]


def _adam(
    before: _Parameter, g: jax.Array, count: jax.Array, settings: tuple[float, float, float]
) -> tuple[_Parameter, jax.Array]:
    """Returns the state with the new moments and factors, and the direction, which is 0 in the first step."""
    b1, b2, eps = settings
    is_first, step = count == 0, jnp.maximum(count, 1).astype(jnp.float32)
    rotated = before.rotate(g)
    mu = jnp.where(is_first, before.mu, b1 * before.mu + (1 - b1) * rotated)
    nu = jnp.where(is_first, before.nu, b2 * before.nu + (1 - b2) * rotated**2)
    correction = jnp.sqrt(1 - b2**step) / (1 - b1**step)
    direction = before.rotate_back(mu / (jnp.sqrt(nu) + eps) * correction)
    products = outer_products(g, before.factors)
    factors = {side: b2 * x + (1 - b2) * products[side] for side, x in before.factors.items()}
    after = dataclasses.replace(before, mu=mu, nu=nu, factors=factors)
    return after, jnp.where(is_first, 0.0, direction)


def _refresh(parameters: Sequence[_Parameter], count: jax.Array, frequency: int) -> list[_Parameter]:
    """Returns the parameters with new bases in the first step and in each n-th step; other steps do not pay for it."""
    factors = [factor for each in parameters for factor in each.factors.values()]
    # Their shapes say how many vectors of the first basis the gradient decides.
    ranks = [jnp.zeros((len(x), min(each.form.size))) for each in parameters for x in each.factors.values()]

    def first(bases: list[Sides], mu: list[jax.Array], nu: list[jax.Array]) -> Parts:
        return in_sides(bases, in_stacks(first_basis, factors, ranks)), mu, nu

    def renewed(bases: list[Sides], mu: list[jax.Array], nu: list[jax.Array]) -> Parts:
        found = in_stacks(power_iteration, factors, [basis for sides in bases for basis in sides.values()])
        after = in_sides(bases, [basis for basis, _ in found])
        orders = in_sides(bases, [order for _, order in found])
        rotated = [
            dataclasses.replace(each, bases=sides).rotate(each.rotate_back(m))
            for each, sides, m in zip(parameters, after, mu, strict=True)
        ]
        return after, rotated, [_permuted(x, order) for x, order in zip(nu, orders, strict=True)]

    def kept(bases: list[Sides], mu: list[jax.Array], nu: list[jax.Array]) -> Parts:
        return bases, mu, nu

    case = jnp.where(count == 0, 0, jnp.where(count % frequency == 0, 1, 2))
    parts = [[each.bases for each in parameters], [each.mu for each in parameters], [each.nu for each in parameters]]
    found = zip(parameters, *jax.lax.switch(case, [first, renewed, kept], *parts), strict=True)
    return [dataclasses.replace(each, bases=bases, mu=mu, nu=nu) for each, bases, mu, nu in found]


def _permuted(x: jax.Array, order: Sides) -> jax.Array:
    """Returns the second moments for another order of the vectors of the bases."""
    x = jnp.take_along_axis(x, order[ROWS][:, :, None], axis=1) if ROWS in order else x
    return jnp.take_along_axis(x, order[COLUMNS][:, None, :], axis=2) if COLUMNS in order else x


def eigenvectors(factor: jax.Array) -> jax.Array:
    """Returns the eigenvectors of symmetric matrices `[matrices, n, n]`, those of the largest eigenvalues first."""
    _, vectors = jnp.linalg.eigh(factor + REGULARIZER * jnp.eye(factor.shape[-1]))
    return vectors[..., ::-1]


def first_basis(factor: jax.Array, rank: jax.Array) -> jax.Array:
    """Returns the eigenvectors of the factors of one gradient, the longer side of which has zero eigenvalues.

    Their vectors are arbitrary: rounding would choose them, and the first updates with them, on each mesh in another
    way. So they complete the others by the axes in their order.

    Args:
        factor: symmetric matrices `[matrices, n, n]`.
        rank: any array `[matrices, shorter side of the gradient]`.
    """
    vectors, known, size = eigenvectors(factor), rank.shape[-1], factor.shape[-1]
    if known >= size:
        return vectors
    axes = jnp.broadcast_to(jnp.eye(size)[:, : size - known], (*factor.shape[:-1], size - known))
    return jnp.linalg.qr(jnp.concatenate([vectors[..., :known], axes], axis=-1))[0]


def power_iteration(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a better basis after one power iteration, and the order of its vectors `[matrices, n]` in the old one.

    The order is that of the eigenvalues, estimated by the old basis, the largest first.
    """
    powers = product(factor, basis)
    order = jnp.argsort(-jnp.sum(basis * powers, axis=-2), axis=-1)
    return jnp.linalg.qr(jnp.take_along_axis(powers, order[:, None, :], axis=-1))[0], order
