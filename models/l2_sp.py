"""AdamW and SGD whose weight decay pulls towards the initial weights instead of 0: L2-SP (Li et al. 2018,
arXiv:1802.01483), so that fine-tuning keeps what a checkpoint knows.

They are targets of `optimizer.target`. The optimizer state holds the initial weights, sharded as the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

type Mask = Callable[[Any], Any] | None


class Initial(NamedTuple):
    """State of `decay_to_initial`."""

    initial: optax.Params
    """The weights with which the run started, or at which their group was unfrozen."""


def decay_to_initial(weight_decay: float) -> optax.GradientTransformation:
    """Returns a transformation that adds `weight_decay * (parameter - initial value)` to the updates.

    It is the gradient of the penalty `weight_decay / 2 * |parameter - initial value|²`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        pulled = jax.tree.map(lambda g, x, first: g + weight_decay * (x - first), updates, params, state.initial)
        return pulled, state

    return optax.GradientTransformation(lambda params: Initial(jax.tree.map(jnp.copy, params)), update)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Returns `optax.adamw` whose decoupled decay pulls towards the initial weights.

    Args:
        learning_rate: a number or a schedule.
        b1, b2, eps: as for `optax.adamw`.
        weight_decay: strength of the pull.
        mask: function of the parameters that selects those that are pulled; None: all.
    """
    pull = decay_to_initial(weight_decay)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        pull if mask is None else optax.masked(pull, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-2,
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Returns `optax.sgd` with the penalty of the paper in its gradient. Arguments as for `optax.sgd` and `adamw`."""
    pull = decay_to_initial(weight_decay)
    return optax.chain(
        pull if mask is None else optax.masked(pull, mask),
        optax.trace(decay=momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )
