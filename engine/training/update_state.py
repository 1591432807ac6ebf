"""The state that `Task.update` gets and returns.

It knows the operations of the step as a protocol, which `update.py` implements, so that `Task` can name this type.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.metrics.values import describe_value
from engine.training.arrays import Arrays


class StepOperations(Protocol):
    """What a step does for an `UpdateState`. An implementation is hashable, since it is not data of the pytree."""

    def model(self, params: Arrays, model_state: Arrays, key: jax.Array) -> nnx.Module:
        """Returns the model with these values, in training mode and in the precision of the run."""
        ...

    def optimize(self, params: Arrays, opt_state: PyTree, grads: Arrays) -> tuple[Arrays, PyTree, jax.Array]:
        """Returns the parameters and the optimizer state after one update, and the norm of the gradient."""
        ...

    def model_state_of(self, model: nnx.Module) -> Arrays:
        """Returns the model state of a module after its forward pass."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateState:
    """The state that `Task.update` gets and returns: a pytree, which loops of JAX can carry.

    The methods return a new state or module and change nothing.
    """

    params: Arrays
    """path -> trained parameter."""
    frozen: Arrays
    """path -> parameter that is not trained."""
    model_state: Arrays
    """path -> array that is not a parameter, such as batch statistics."""
    opt_state: PyTree
    """State of the optimizer of the config."""
    grad_norm: jax.Array
    """Norm of the latest gradient, the metric `grad_norm`; 0 before `apply_gradients`."""
    key: jax.Array
    """Random key of the step, for the modules that draw random numbers themselves."""
    static: StepOperations = dataclasses.field(metadata={"static": True})

    def model(self, params: Arrays | None = None) -> Any:
        """Returns the model in training mode, in the precision of the run.

        Args:
            params: path -> trained parameter, to differentiate with respect to it; None for `self.params`.
        """
        values = {**(self.params if params is None else params), **self.frozen}
        return self.static.model(values, self.model_state, self.key)

    def apply_gradients(self, grads: Arrays) -> "UpdateState":
        """Returns the state after an update of the optimizer, with its clipping, schedule and groups.

        Each call counts as a step of the schedules.

        Args:
            grads: path -> gradient, one for each of `self.params`.

        Raises:
            TaskError: a gradient is missing, or there is one of something else.
        """
        if not isinstance(grads, Mapping) or grads.keys() != self.params.keys():
            found = describe_value(grads)
            if isinstance(grads, Mapping):
                found = f"gradients of {', '.join(map(str, grads)) or 'nothing'}"
            raise TaskError(
                "apply_gradients needs a gradient for each entry of state.params, as jax.grad gives it with respect "
                f"to state.params. Found {found}."
            )
        params, opt_state, norm = self.static.optimize(self.params, self.opt_state, grads)
        return dataclasses.replace(self, params=params, opt_state=opt_state, grad_norm=norm)

    def store(self, model: nnx.Module) -> "UpdateState":
        """Returns the state with the model state of a module of `model()`, such as its new batch statistics."""
        new = self.static.model_state_of(model)
        kept = {path: x.astype(self.model_state[path].dtype) for path, x in new.items()}
        return dataclasses.replace(self, model_state=kept)
