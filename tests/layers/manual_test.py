"""A function on the arrays of each device, also within the stages of a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers.manual import on_each_device
from engine.parallel.layout import Layout
from tests.layers import plain

X = np.random.default_rng(0).normal(size=(4, 4, 8)).astype(np.float32)


def rolled(x):
    """Exchanges the halves of the last dimension between two devices."""
    return jnp.sin(jax.lax.ppermute(x, "context", [(0, 1), (1, 0)]))


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_value_and_gradient_are_those_of_the_whole_array(inside, check_vma):
    here = Layout(mesh=plain.mesh(pipeline=2, data=2, context=2))
    spec = jax.P("data", None, "context")

    def stage(x):
        return on_each_device(here, rolled, in_specs=spec, out_specs=spec, check_vma=check_vma)(x)

    def loss(x):
        rows = jax.P("pipeline")
        stages = jax.shard_map(
            stage, mesh=here.mesh, in_specs=rows, out_specs=rows, axis_names={"pipeline"}, check_vma=False
        )
        return ((stages if inside else stage)(x) ** 2 * X).sum()

    def expected(x):
        return (jnp.sin(jnp.roll(x, 4, axis=-1)) ** 2 * X).sum()

    found, wanted = (jax.jit(jax.value_and_grad(f))(X) for f in (loss, expected))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
