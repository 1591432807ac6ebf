"""Schedule-free AdamW and gradient descent, whose average follows the learning rates of a warm-up.

In those of Optax, step k has the learning rate of k and, in the average, the weight of the rate of k + 1; and their
weight decay acts on all parameters. The averages are computed by `optax.contrib.schedule_free`, so evaluations, saves
and `optax.contrib.schedule_free_eval_params` know them.
"""

from typing import Any

import optax


def schedule_free_adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, Algorithm 1).

    State: `optax.contrib.ScheduleFreeState` with z, like each parameter, and the second moment of `scale_by_rms`.

    Args:
        learning_rate: with a warm-up and without a decay.
        b1: share of the average in the point of the gradient.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_lr_power: power of the largest learning rate so far that is the weight of a step in the average.
        weight_decay: decoupled weight decay, multiplied by the learning rate, at the point of the gradient.
        weight_decay_mask: which parameters decay, as `optax.adamw` takes it.
    """
    scaled = optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True)
    return _averaged(scaled, learning_rate, b1, weight_lr_power, weight_decay, weight_decay_mask)


def schedule_free_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns schedule-free gradient descent (Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5).

    Args and state: as `schedule_free_adamw`, without a second moment.
    """
    return _averaged(optax.identity(), learning_rate, b1, weight_lr_power, weight_decay, weight_decay_mask)


def _averaged(
    scaled: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    weight_lr_power: float,
    weight_decay: float,
    weight_decay_mask: Any,
) -> optax.GradientTransformationExtraArgs:
    steps = optax.chain(
        scaled,
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def of_count(count: Any) -> Any:
        return learning_rate(count - 1) if callable(learning_rate) else learning_rate  # Optax counts from 1

    return optax.contrib.schedule_free(steps, of_count, b1=b1, weight_lr_power=weight_lr_power)
