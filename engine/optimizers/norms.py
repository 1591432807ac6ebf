"""LAMB and Adafactor, whose norms and factors are those of each layer and each matrix.

Those of Optax compute them of whole arrays: the layers of a stack would share one norm, and the dimensions of an
attention kernel would be factored two by two.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree
from engine.optimizers.matrices import Matrices, forms, is_masked, two_dimensions

type Stacked = Callable[[Any], Mapping[str, int]]
"""Function of the parameters that returns the number of leading dimensions of each that index layers."""
type Dimensions = tuple[tuple[int, ...], tuple[int, ...]]
"""Dimensions of one array within a parameter: those of its rows and of its columns; the first are empty for vectors."""


class AdafactorState(NamedTuple):
    """State of `scale_by_adafactor`."""

    step: jax.Array
    """int32: updates so far."""
    rows: PyTree
    """float32: mean square of each row, of size 1 along the columns; of a parameter without factors, of each number."""
    columns: PyTree
    """float32: mean square of each column, of size 1 along the rows; `[1]` for a parameter without factors."""


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    matrices: Matrices | None = None,
    stacked: Stacked | None = None,
) -> optax.GradientTransformation:
    """Returns LAMB (You et al. 2020, arXiv:1904.00962, Algorithm 2): Adam whose updates have the norms of the weights.

    It is `optax.lamb` with a norm for each matrix, and for each layer of another parameter of a stack.

    State: that of `optax.scale_by_adam`.

    Args:
        learning_rate: the learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, a part of the update whose norm is taken.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        matrices: function of the parameters that returns `optax.contrib.MuonDimensionNumbers` of each matrix and None
            for other parameters. None: arrays of two dimensions are matrices.
        stacked: function of the parameters that returns the leading dimensions of each that index layers. None: none.
    """
    places = _Places(matrices or two_dimensions, stacked)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        _stateless(places, _with_norm_of),
        optax.scale_by_learning_rate(learning_rate),
    )


def adafactor(
    learning_rate: optax.ScalarOrSchedule,
    *,
    decay_rate: float = 0.8,
    smallest: int = 128,
    clip: float = 1.0,
    smallest_scale: float = 1e-3,
    eps: float = 1e-30,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    matrices: Matrices | None = None,
    stacked: Stacked | None = None,
) -> optax.GradientTransformation:
    """Returns Adafactor (Shazeer & Stern 2018, arXiv:1804.04235, Algorithms 4 and 6), without a first moment.

    It is `optax.adafactor` with factors, norms and scales for each matrix, and for each layer of another parameter of a
    stack, and with a weight decay that is multiplied by the learning rate.

    State: two float32 vectors for each matrix and each table with sides of at least `smallest`, else one number for
    each number of the parameter (`AdafactorState`).

    Args:
        learning_rate: of an update relative to the root mean square of the weights.
        decay_rate: in step t the second moments decay by 1 - t ** -decay_rate.
        smallest: sides below it are not factored.
        clip: largest root mean square of an update before the learning rate.
        smallest_scale: smallest root mean square of weights that counts.
        eps: added to the squares of the gradient.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
        matrices: as for `lamb`.
        stacked: as for `lamb`.
    """
    places = _Places(matrices or two_dimensions, stacked)

    def clipped(g: jax.Array, x: jax.Array, own: tuple[int, ...]) -> jax.Array:
        return g / jnp.maximum(1.0, _rms(g, own) / clip) * jnp.maximum(_rms(x, own), smallest_scale)

    return optax.chain(
        scale_by_adafactor(places, decay_rate, smallest, eps),
        _stateless(places, clipped),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


class _Places:
    """Finds the dimensions of one array within each parameter."""

    def __init__(self, matrices: Matrices, stacked: Stacked | None):
        self._matrices, self._stacked = matrices, stacked

    def map(self, function: Callable[..., Any], params: PyTree, *trees: PyTree) -> PyTree:
        """Returns `function(parameter, *arrays, dimensions)` of each parameter; masked ones stay masked."""
        if not jax.tree.leaves(params):  # optax looks for the places of parameters in a state
            return params
        leading = {} if self._stacked is None else self._stacked(params)
        counts = jax.tree.map_with_path(lambda path, x: leading.get(path[-1].key, 0) if path else 0, params,
                                        is_leaf=is_masked)  # fmt: skip

        def call(x: Any, form: Any, count: int, *arrays: Any) -> Any:
            if is_masked(x):
                return x
            if form is not None:
                return function(x, *arrays, (form.rows, form.columns))
            own = tuple(range(count, x.ndim))
            return function(x, *arrays, (own[:1], own[1:]) if len(own) == 2 else ((), own))

        return jax.tree.map(call, params, forms(self._matrices, params), counts, *trees, is_leaf=is_masked)


def _stateless(places: _Places, function: Callable[..., jax.Array]) -> optax.GradientTransformation:
    """Returns a transformation of `function(update, parameter, dimensions of one array)`."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        def call(x: jax.Array, g: jax.Array, dimensions: Dimensions) -> jax.Array:
            return function(g, x, (*dimensions[0], *dimensions[1]))

        return places.map(call, params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _with_norm_of(g: jax.Array, x: jax.Array, own: tuple[int, ...]) -> jax.Array:
    """Returns an update with the norm of the parameter; unchanged where one of both is 0."""
    wanted, found = (jnp.sqrt(jnp.sum(jnp.square(each), own, keepdims=True)) for each in (x, g))
    return g * jnp.where((wanted == 0) | (found == 0), 1.0, wanted / jnp.where(found == 0, 1.0, found))


def _rms(x: jax.Array, own: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), own, keepdims=True))


def scale_by_adafactor(
    places: _Places, decay_rate: float = 0.8, smallest: int = 128, eps: float = 1e-30
) -> optax.GradientTransformation:
    """Returns the part of `adafactor` that divides gradients by the root of their factored second moments."""

    def is_factored(x: jax.Array, dimensions: Dimensions) -> bool:
        sizes = [[x.shape[i] for i in found] for found in dimensions]
        return bool(dimensions[0]) and min(map(math.prod, sizes)) >= smallest

    def init(params: PyTree) -> AdafactorState:
        def zeros(side: int) -> Callable[[jax.Array, Dimensions], jax.Array]:
            def of(x: jax.Array, dimensions: Dimensions) -> jax.Array:
                if not is_factored(x, dimensions):
                    return jnp.zeros((1,) if side else x.shape)
                return jnp.zeros([1 if i in dimensions[1 - side] else size for i, size in enumerate(x.shape)])

            return of

        return AdafactorState(jnp.zeros((), jnp.int32), *(places.map(zeros(side), params) for side in (0, 1)))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, AdafactorState]:
        del params
        step: Any = optax.safe_increment(state.step)
        decay = 1 - step.astype(jnp.float32) ** -decay_rate

        def moved(g: jax.Array, rows: jax.Array, columns: jax.Array, dimensions: Dimensions) -> tuple[jax.Array, ...]:
            square = jnp.square(g.astype(jnp.float32)) + eps
            if not is_factored(g, dimensions):
                rows = decay * rows + (1 - decay) * square
                return (g * rows**-0.5).astype(g.dtype), rows, columns
            rows = decay * rows + (1 - decay) * square.mean(dimensions[1], keepdims=True)
            columns = decay * columns + (1 - decay) * square.mean(dimensions[0], keepdims=True)
            share = rows / rows.mean(dimensions[0], keepdims=True)
            return (g * share**-0.5 * columns**-0.5).astype(g.dtype), rows, columns

        found = places.map(moved, updates, state.rows, state.columns)
        made, rows, columns = (
            jax.tree.map(lambda each, i=i: each if is_masked(each) else each[i], found, is_leaf=_is_result)
            for i in range(3)
        )
        return made, AdafactorState(step, rows, columns)

    return optax.GradientTransformation(init, update)


def _is_result(x: object) -> bool:
    return is_masked(x) or isinstance(x, tuple)
