"""`UncertaintyWeights`, weights of losses that the model learns (Kendall, Gal and Cipolla 2018, arXiv:1705.07115)."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from engine.base.errors import TaskError
from engine.metrics.mean import Mean
from engine.training.loss import Loss, LossSum


class UncertaintyWeights(nnx.Module):
    """Learned weights of losses: a loss L becomes exp(-s) L + s / 2, with a trained number s for each.

    s is the logarithm of the variance of the noise of a task, and is 0 at first. The minimum over s has exp(-s) L = 1 /
    2, so all losses have the same size there. This is the form for cross entropies. For squared errors, Kendall et al.
    halve L: pass 0.5 * loss.

    Use it in the model, and call it in the loss: `return model.weights(Loss.sum(boxes=..., lanes=...))`. Weight decay
    of matrices, the default, does not act on s. The metrics `weight/NAME` show exp(-s).

    Args:
        names: names of the losses, such as the datasets of `engine.Joint`.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.log_variance = nnx.Param(jnp.zeros(len(self.names)), logical_axes=("norm",))

    def __call__(self, loss: LossSum | Mapping[str, Loss | LossSum]) -> LossSum:
        """Returns the weighted losses; losses that the batch does not have stay away.

        Raises:
            TaskError: a loss has no weight of its name.
        """
        terms = loss.terms if isinstance(loss, LossSum) else Loss.sum(**loss).terms
        return LossSum({name: self._weighted(name, term) for name, term in terms.items()})

    def _weighted(self, name: str, loss: Loss) -> Loss:
        if name not in self.names:
            raise TaskError(f"UncertaintyWeights: no weight of loss {name!r}. It has: {', '.join(self.names)}.")
        s = self.log_variance.get_value().astype(jnp.float32)[self.names.index(name)]
        factor = jnp.exp(-s)
        shown = Mean(factor * loss.weight, jnp.asarray(loss.weight))
        return Loss(factor * loss.total + s / 2 * loss.weight, loss.weight, {**loss.metrics, f"weight/{name}": shown})
