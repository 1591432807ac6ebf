"""The gated activation equals its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers import swiglu

GATE, UP = 3 * jax.random.normal(jax.random.key(0), (2, 4, 16, 8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_swiglu_equals_silu_of_gate_times_up(dtype):
    gate, up = GATE.astype(dtype), UP.astype(dtype)
    found = swiglu(gate, up)
    assert found.dtype == dtype
    wanted = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    np.testing.assert_allclose(
        found.astype(jnp.float32), wanted, rtol=2e-2 if dtype == jnp.bfloat16 else 1e-5, atol=1e-6
    )
