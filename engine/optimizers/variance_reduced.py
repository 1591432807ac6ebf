"""MARS: AdamW on gradients of less variance (Yuan et al. 2024, arXiv:2411.10438)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, MatrixForm, forms, is_masked, partitioned, two_dimensions

LONGEST = 1.0
"""Largest norm of the corrected gradient of a matrix."""


class MarsState(NamedTuple):
    """State of `correct_variance`."""

    previous: PyTree
    """Gradient of the step before, like each parameter."""


def mars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.95,
    b2: float = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    matrices: Matrices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns MARS-AdamW for matrices, and AdamW for the other parameters.

    MARS (Yuan et al. 2024, arXiv:2411.10438, Algorithm 2) gives AdamW the gradient c = g + gamma b1 / (1 - b1)
    (g - g') instead of g, limited to norm 1 for each matrix. g' is the gradient of the step before: the approximate
    form, which needs one gradient in a step.

    Each matrix of a stack of layers has its own norm, as if it were a parameter of its own.

    State: the gradient of the step before, and two moments, like each matrix; the state of `optax.adamw` for the
    other parameters.

    Args:
        learning_rate: of both parts.
        b1: decay of the first moment.
        b2: decay of the second moment.
        gamma: strength of the correction; 0 is AdamW with a limited norm.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay of both parts, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        adam_learning_rate: of AdamW for the other parameters, if not `learning_rate`.
        adam_b1, adam_b2: decays of AdamW for the other parameters.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
    """
    matrices = matrices or two_dimensions
    decay = {"weight_decay": weight_decay, "mask": weight_decay_mask, "eps": eps}
    of_matrices = optax.chain(
        correct_variance(b1=b1, gamma=gamma, matrices=matrices), optax.adamw(learning_rate, b1=b1, b2=b2, **decay)
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    return partitioned(of_matrices, optax.adamw(rate, b1=adam_b1, b2=adam_b2, **decay), matrices)


def correct_variance(*, b1: float, gamma: float, matrices: Matrices = two_dimensions) -> optax.GradientTransformation:
    """Returns the transformation of gradients to corrected ones; all parameters are matrices or masked."""

    def init(params: PyTree) -> MarsState:
        return MarsState(optax.tree.zeros_like(params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, MarsState]:
        del params

        def corrected(g: Any, previous: Any, form: MatrixForm) -> Any:
            if is_masked(g):
                return g
            c = g + gamma * b1 / (1 - b1) * (g - previous)
            norm = _norms(c, form)
            return jnp.where(norm > LONGEST, c / norm, c).astype(g.dtype)

        made = jax.tree.map(corrected, updates, state.previous, forms(matrices, updates), is_leaf=is_masked)
        return made, MarsState(updates)

    return optax.GradientTransformation(init, update)


def _norms(x: jax.Array, form: MatrixForm) -> jax.Array:
    """Returns the norm of each matrix, with size 1 along its own dimensions."""
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.sqrt(jnp.sum(squares, axis=(*form.rows, *form.columns), keepdims=True))
