"""The state of `Task.update` refuses gradients that do not fit, keeps its dtypes, and is a pytree."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from engine.base.errors import TaskError
from engine.training.update_state import UpdateState


@dataclasses.dataclass(frozen=True)
class Descent:
    """Subtracts the gradients; a model holds the model state that the forward pass leaves."""

    def model(self, params, model_state, key):
        return nnx.Dict(params=nnx.Dict(params), model_state=nnx.Dict(model_state))

    def optimize(self, params, opt_state, grads):
        return jax.tree.map(jnp.subtract, params, grads), opt_state + 1, jnp.float32(5)

    def model_state_of(self, model):
        return {path: jnp.float32(7) for path in model["model_state"]}


STATE = UpdateState(
    params={"head/kernel": jnp.float32(3)},
    frozen={"stem/kernel": jnp.float32(4)},
    model_state={"norm/mean": jnp.bfloat16(0)},
    opt_state=jnp.int32(0),
    grad_norm=jnp.float32(0),
    key=jax.random.key(0),
    static=Descent(),
)


def test_gradients_change_parameters_optimizer_state_and_norm():
    after = jax.jit(lambda state: state.apply_gradients({"head/kernel": jnp.float32(1)}))(STATE)
    assert (after.params, after.opt_state, after.grad_norm) == ({"head/kernel": 2}, 1, 5)
    assert after.frozen == STATE.frozen


@pytest.mark.parametrize(
    ("grads", "found"),
    [
        ({}, "Found gradients of nothing"),
        (None, "Found None"),
        ({"head/kernel": 0.0, "stem/kernel": 0.0}, "Found gradients of head/kernel, stem/kernel"),
    ],
)
def test_gradients_that_do_not_fit_raise_task_error(grads, found):
    with pytest.raises(TaskError, match=f"entry of state.params.*{found}"):
        STATE.apply_gradients(grads)


def test_model_has_trained_and_frozen_parameters_and_its_new_model_state_keeps_its_dtype():
    model = STATE.model({"head/kernel": jnp.float32(9)})
    assert dict(model["params"]) == {"head/kernel": 9, "stem/kernel": 4}
    stored = STATE.store(model).model_state["norm/mean"]
    assert (stored, stored.dtype) == (7, jnp.bfloat16)
