"""SOAP: Adam in the eigenbases of Shampoo's preconditioner (Vyas et al. 2024, arXiv:2409.11321)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, MatrixForm, forms, in_stacks, is_masked, partitioned, two_dimensions

REGULARIZER = 1e-30
"""Added to the diagonal before the first decomposition, as in the authors' code."""
ROWS, COLUMNS = 0, 1

type Sides = dict[int, jax.Array]
"""Square matrices `[matrices, n, n]` for the rows and the columns, without those of a side that is not rotated."""
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
        x = _product(self.bases[ROWS].mT, x) if ROWS in self.bases else x
        return _product(x, self.bases[COLUMNS]) if COLUMNS in self.bases else x

    def rotate_back(self, x: jax.Array) -> jax.Array:
        """Returns matrices of the eigenbases in the basis of the parameter."""
        x = _product(self.bases[ROWS], x) if ROWS in self.bases else x
        return _product(x, self.bases[COLUMNS].mT) if COLUMNS in self.bases else x


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
        found = forms(matrices, params)

        def squares(side: int) -> PyTree:
            def square(x: jax.Array, form: MatrixForm) -> jax.Array | optax.MaskedNode:
                size = form.size[side]
                return jnp.zeros((*form.leading, size, size)) if size <= largest else optax.MaskedNode()

            return jax.tree.map(square, params, found)

        moments = [optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(2)]
        sides = [squares(side) for side in (ROWS, COLUMNS, ROWS, COLUMNS)]
        return SoapState(jnp.zeros((), jnp.int32), *moments, *sides)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, SoapState]:
        del params
        found = forms(matrices, updates)
        leaves, structure = jax.tree.flatten(updates, is_leaf=is_masked)
        here = [i for i, x in enumerate(leaves) if not is_masked(x)]
        before = _parameters(state, [jax.tree.leaves(found, is_leaf=is_masked)[i] for i in here], here)
        grads = [each.form.split(leaves[i].astype(jnp.float32)) for i, each in zip(here, before, strict=True)]
        steps = [_adam(each, g, state.step, (b1, b2, eps)) for each, g in zip(before, grads, strict=True)]
        after = _refresh([each for each, _ in steps], state.step, frequency)
        directions = [each.form.join(u) for each, u in steps]

        def tree(values: Sequence[object]) -> PyTree:
            known = dict(zip(here, values, strict=True))
            return structure.unflatten([known.get(i, x) for i, x in enumerate(leaves)])

        made = [x.astype(leaves[i].dtype) for i, x in zip(here, directions, strict=True)]
        return tree(made), SoapState(state.step + 1, *map(tree, _columns(after)))

    return optax.GradientTransformation(init, update)


def _parameters(state: SoapState, forms: Sequence[MatrixForm], here: Sequence[int]) -> list[_Parameter]:
    """Returns the state of each parameter; `here` are the places of the matrices among all parameters."""
    parts: PyTree = state[1:]
    columns = [jax.tree.leaves(part, is_leaf=is_masked) for part in parts]
    found = []
    for i, form in zip(here, forms, strict=True):
        mu, nu, *squares = (column[i] for column in columns)
        sides = [(side % 2, x.reshape(-1, *x.shape[-2:])) for side, x in enumerate(squares) if not is_masked(x)]
        half = len(sides) // 2
        found.append(_Parameter(form, form.split(mu), form.split(nu), dict(sides[:half]), dict(sides[half:])))
    return found


def _columns(parameters: Sequence[_Parameter]) -> list[list[object]]:
    """Returns the arrays of each field of a SoapState after `count`."""

    def square(form: MatrixForm, x: jax.Array | None) -> object:
        return optax.MaskedNode() if x is None else x.reshape(*form.leading, *x.shape[-2:])

    moments: list[list[object]] = [
        [each.form.join(each.mu) for each in parameters],
        [each.form.join(each.nu) for each in parameters],
    ]
    factors = [[square(each.form, each.factors.get(side)) for each in parameters] for side in (ROWS, COLUMNS)]
    bases = [[square(each.form, each.bases.get(side)) for each in parameters] for side in (ROWS, COLUMNS)]
    return [*moments, *factors, *bases]


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
    squares = {ROWS: lambda: _product(g, g.mT), COLUMNS: lambda: _product(g.mT, g)}
    factors = {side: b2 * x + (1 - b2) * squares[side]() for side, x in before.factors.items()}
    after = dataclasses.replace(before, mu=mu, nu=nu, factors=factors)
    return after, jnp.where(is_first, 0.0, direction)


def _refresh(parameters: Sequence[_Parameter], count: jax.Array, frequency: int) -> list[_Parameter]:
    """Returns the parameters with new bases in the first step and in each n-th step; other steps do not pay for it."""
    factors = [factor for each in parameters for factor in each.factors.values()]

    def first(bases: list[Sides], mu: list[jax.Array], nu: list[jax.Array]) -> Parts:
        return _in_sides(bases, in_stacks(eigenvectors, factors)), mu, nu

    def renewed(bases: list[Sides], mu: list[jax.Array], nu: list[jax.Array]) -> Parts:
        found = in_stacks(power_iteration, factors, [basis for sides in bases for basis in sides.values()])
        after = _in_sides(bases, [basis for basis, _ in found])
        orders = _in_sides(bases, [order for _, order in found])
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


def _in_sides(like: Sequence[Sides], values: Sequence[jax.Array]) -> list[Sides]:
    """Returns values, one for each side of each parameter in turn, by side."""
    remaining = iter(values)
    return [{side: next(remaining) for side in sides} for sides in like]


def _permuted(x: jax.Array, order: Sides) -> jax.Array:
    """Returns the second moments for another order of the vectors of the bases."""
    x = jnp.take_along_axis(x, order[ROWS][:, :, None], axis=1) if ROWS in order else x
    return jnp.take_along_axis(x, order[COLUMNS][:, None, :], axis=2) if COLUMNS in order else x


def eigenvectors(factor: jax.Array) -> jax.Array:
    """Returns the eigenvectors of symmetric matrices `[matrices, n, n]`, those of the largest eigenvalues first."""
    _, vectors = jnp.linalg.eigh(factor + REGULARIZER * jnp.eye(factor.shape[-1]))
    return vectors[..., ::-1]


def power_iteration(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a better basis after one power iteration, and the order of its vectors `[matrices, n]` in the old one.

    The order is that of the eigenvalues, estimated by the old basis, the largest first.
    """
    powers = _product(factor, basis)
    order = jnp.argsort(-jnp.sum(basis * powers, axis=-2), axis=-1)
    return jnp.linalg.qr(jnp.take_along_axis(powers, order[:, None, :], axis=-1))[0], order


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
