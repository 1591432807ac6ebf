"""Muon: momentum whose matrices are orthogonalised (Jordan 2024, https://kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, MatrixForm, forms, in_stacks, is_masked, partitioned, two_dimensions

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the author's quintic iteration, whose slope at 0 is as large as possible."""
DTYPE = jnp.bfloat16
"""Of the iteration, and of what devices send each other."""
SMALLEST_NORM = 1e-7
RMS = 0.2
"""Root mean square of an update of AdamW, as measured by Liu et al. 2025."""

type Scale = Literal["spectral", "rms"]


class MuonState(NamedTuple):
    """State of the matrices."""

    momentum: PyTree
    """Exponential moving average of the gradient, like each matrix."""


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    scale: Scale = "spectral",
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    adam_eps: float = 1e-8,
    matrices: Matrices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns Muon for matrices, and AdamW for the other parameters.

    Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) updates a matrix by the nearest orthogonal matrix of
    its momentum. As in the author's code, m = momentum m + (1 - momentum) g, without correction of a bias, and
    Nesterov's momentum is momentum m + (1 - momentum) g with the new m. Five steps of a Newton-Schulz iteration in
    bfloat16 bring the singular values to between about 0.7 and 1.2.

    Each matrix of a stack of layers, each expert, and each attention kernel is orthogonalised on its own. On a mesh
    each device does so for its share of the whole matrices, so the result does not depend on the mesh.

    State: float arrays like the matrices (`MuonState`), and the state of `optax.adamw` for the other parameters.

    Args:
        learning_rate: of both parts.
        momentum: decay of the momentum.
        nesterov: whether matrices have Nesterov's momentum.
        steps: steps of the iteration.
        scale: "spectral" multiplies an update by sqrt(max(1, outputs / inputs)), as the author does. "rms" multiplies
            it by 0.2 sqrt(max(outputs, inputs)), so that the learning rate of AdamW fits (Liu et al. 2025,
            arXiv:2502.16982).
        weight_decay: decoupled weight decay of both parts, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        adam_learning_rate: of AdamW, if not `learning_rate`.
        adam_b1, adam_b2, adam_eps: settings of AdamW.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
    """
    matrices = matrices or two_dimensions
    of_matrices = optax.chain(
        scale_by_muon(momentum=momentum, nesterov=nesterov, steps=steps, scale=scale, matrices=matrices),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    others = optax.adamw(rate, b1=adam_b1, b2=adam_b2, eps=adam_eps, weight_decay=weight_decay, mask=weight_decay_mask)
    return partitioned(of_matrices, others, matrices)


def scale_by_muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    scale: Scale = "spectral",
    matrices: Matrices = two_dimensions,
) -> optax.GradientTransformation:
    """Returns the part of `muon` that makes updates of matrices; all parameters are matrices or masked."""

    def init(params: PyTree) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, MuonState]:
        del params
        new = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        directions = optax.tree.update_moment(updates, new, momentum, 1) if nesterov else new
        return _orthogonalised(directions, forms(matrices, updates), steps, scale), MuonState(new)

    return optax.GradientTransformation(init, update)


def _orthogonalised(tree: PyTree, forms: PyTree, steps: int, scale: Scale) -> PyTree:
    """Returns the matrices of a pytree, orthogonalised and scaled."""
    leaves, structure = jax.tree.flatten(tree)
    of_leaves: list[MatrixForm] = [form for form in jax.tree.leaves(forms) if not is_masked(form)]
    wide = [_transposed_if(form, form.split(x.astype(DTYPE))) for form, x in zip(of_leaves, leaves, strict=True)]
    found = in_stacks(_iterate(steps), wide)
    return structure.unflatten(
        form.join(_transposed_if(form, y)).astype(x.dtype) * _factor(scale, *form.size)
        for form, x, y in zip(of_leaves, leaves, found, strict=True)
    )


def _transposed_if(form: MatrixForm, x: jax.Array) -> jax.Array:
    """Returns matrices transposed if a matrix of this form has more rows than columns."""
    rows, columns = form.size
    return x.mT if rows > columns else x


def _factor(scale: Scale, inputs: int, outputs: int) -> float:
    if scale == "rms":
        return RMS * max(inputs, outputs) ** 0.5
    return max(1.0, outputs / inputs) ** 0.5


def _iterate(steps: int) -> Callable[[jax.Array], jax.Array]:
    def newton_schulz(x: jax.Array) -> jax.Array:
        return orthogonalise(x, steps)

    return newton_schulz


def orthogonalise(x: jax.Array, steps: int = 5) -> jax.Array:
    """Returns the nearest orthogonal matrices, about: singular values between 0.7 and 1.2, in bfloat16.

    Args:
        x: matrices `[matrices, rows, columns]` with at most as many rows as columns.
        steps: steps of the Newton-Schulz iteration.
    """
    a, b, c = COEFFICIENTS
    x = x.astype(DTYPE).astype(jnp.float32)
    norm = jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
    x = (x / (norm + SMALLEST_NORM)).astype(DTYPE)

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, preferred_element_type=jnp.float32)

    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        # The coefficients stay float32, as in torch: in bfloat16, a = 3.4445 would be 3.4375, and the result 10 % off.
        square = product(x, x.mT).astype(DTYPE)
        polynomial = (b * square.astype(jnp.float32) + c * product(square, square)).astype(DTYPE)
        return (a * x.astype(jnp.float32) + product(polynomial, x)).astype(DTYPE)

    with jax.named_scope("newton_schulz"):
        return jax.lax.fori_loop(0, steps, step, x)
