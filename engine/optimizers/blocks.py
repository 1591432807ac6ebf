"""Adam-mini: Adam with one second moment for each neuron or head (Zhang et al. 2024, arXiv:2406.16793)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, MatrixForm, forms, is_masked, two_dimensions


class AdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`."""

    step: jax.Array
    """int32: updates so far."""
    mu: PyTree
    """First moment, like each parameter."""
    nu: PyTree
    """float32: second moment of each block, like the parameter with size 1 along the dimensions of a block."""


def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    matrices: Matrices | None = None,
) -> optax.GradientTransformation:
    """Returns Adam-mini, whose state is half that of AdamW.

    Adam-mini (Zhang et al. 2024, arXiv:2406.16793, Algorithm 2) has one second moment for each block of a matrix, the
    mean of its squares. A block has the weights of one output neuron. If a matrix has several dimensions of outputs,
    such as the kernels of queries and keys `[features, heads, head size]`, a block has those of one head. Embeddings,
    output layers, norms and biases have a second moment for each number, as in AdamW.

    State: the first moment, like each parameter, and a float32 number for each block (`AdamMiniState`).

    Args:
        learning_rate: the learning rate, for which that of AdamW fits.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
    """
    return optax.chain(
        scale_by_adam_mini(b1=b1, b2=b2, eps=eps, matrices=matrices or two_dimensions),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_adam_mini(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, matrices: Matrices = two_dimensions
) -> optax.GradientTransformation:
    """Returns the part of `adam_mini` before the weight decay and the learning rate."""

    def by_parameter(function: Any, *trees: PyTree) -> PyTree:
        """Returns a function of the arrays of each parameter, and of the dimensions of its blocks."""
        found = forms(matrices, trees[0])

        def call(x: Any, form: MatrixForm | None, *rest: Any) -> Any:
            return x if is_masked(x) else function(x, block_dimensions(form), *rest)

        return jax.tree.map(call, trees[0], found, *trees[1:], is_leaf=is_masked)

    def init(params: PyTree) -> AdamMiniState:
        def zeros(x: jax.Array, block: tuple[int, ...]) -> jax.Array:
            return jnp.zeros([1 if i in block else size for i, size in enumerate(x.shape)])

        return AdamMiniState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), by_parameter(zeros, params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, AdamMiniState]:
        del params

        def second(g: jax.Array, block: tuple[int, ...], nu: jax.Array) -> jax.Array:
            square = jnp.square(g.astype(jnp.float32))
            return b2 * nu + (1 - b2) * (square.mean(block, keepdims=True) if block else square)

        step: Any = optax.safe_increment(state.step)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = by_parameter(second, updates, state.nu)
        corrected = optax.tree.bias_correction(mu, b1, step), optax.tree.bias_correction(nu, b2, step)
        made = jax.tree.map(lambda m, v, g: (m / (jnp.sqrt(v) + eps)).astype(g.dtype), *corrected, updates)
        return made, AdamMiniState(step, mu, nu)

    return optax.GradientTransformation(init, update)


def block_dimensions(form: MatrixForm | None) -> tuple[int, ...]:
    """Returns the dimensions of a parameter that a block has whole: those of its inputs, and of a head."""
    return () if form is None else (*form.rows, *form.columns[1:])
