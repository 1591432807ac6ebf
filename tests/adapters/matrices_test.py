"""Kernels as matrices, with the logical axes and the initial values of the matrices of an adapter."""

import jax
import numpy as np
import pytest
from flax import nnx

from engine import layers
from engine.adapters.matrices import initial, shape_of

NAMES = {"out_sharding": (None, None, "embed", "mlp")}
MAKE = {
    "dense": lambda rngs: layers.Dense(6, 4, axes=("embed", "mlp"), rngs=rngs),
    "stack": lambda rngs: layers.Stack(MAKE["square"], 3, rngs=rngs).layers,
    "square": lambda rngs: layers.Dense(6, 6, axes=("embed", "mlp"), rngs=rngs),
    "stack without names": lambda rngs: layers.Stack(MAKE["linear"], 3, rngs=rngs).layers,
    "linear": lambda rngs: nnx.Linear(6, 6, rngs=rngs),
    "experts": lambda rngs: layers.Experts(6, 4, 3, 1, capacity_factor=None, rngs=rngs),
    "convolution": lambda rngs: nnx.Conv(2, 4, (3, 5), rngs=rngs),
    "named convolution": lambda rngs: nnx.Conv(2, 4, (3, 5), kernel_metadata=NAMES, rngs=rngs),
    "heads": lambda rngs: nnx.LinearGeneral(6, (2, 4), rngs=rngs),
    "merged heads": lambda rngs: nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), rngs=rngs),
}


def made(name):
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(lambda: MAKE[name](nnx.Rngs(0)))


CASES = {
    "dense": ("kernel", (6, 2), ("embed", None), (2, 4), (None, "mlp")),
    "stack": ("kernel", (3, 6, 2), ("layers", "embed", None), (3, 2, 6), ("layers", None, "mlp")),
    "stack without names": ("kernel", (3, 6, 2), ("layers",), (3, 2, 6), ("layers",)),
    "experts": ("down", (3, 4, 2), ("expert", "mlp", None), (3, 2, 6), ("expert", None, "embed")),
    "convolution": ("kernel", (30, 2), None, (2, 4), None),
    "named convolution": ("kernel", (30, 2), (None, None), (2, 4), (None, "mlp")),
    "heads": ("kernel", (6, 2), None, (2, 8), None),
    "merged heads": ("kernel", (8, 2), None, (2, 6), None),
}


@pytest.mark.parametrize("case", CASES)
def test_matrices_have_the_shapes_and_axes_of_the_kernel(case):
    name, a, a_axes, b, b_axes = CASES[case]
    module = made(case)
    shape = shape_of(module, getattr(module, name))
    assert shape is not None
    found = initial(shape, 2, jax.random.key(0))
    assert [x.shape for x in found] == [a, b]
    assert [x.get_metadata().get("logical_axes") for x in found] == [a_axes, b_axes]


def test_biases_and_scales_are_no_matrices():
    for name in ("convolution", "stack without names"):
        module = made(name)
        assert shape_of(module, module.bias) is None
    norm = layers.RMSNorm(4)
    assert shape_of(norm, norm.scale) is None


def test_initial_values_are_those_of_peft():
    module = made("convolution")
    shape = shape_of(module, module.kernel)
    assert shape is not None
    a, b = (np.asarray(x.get_value()) for x in initial(shape, 64, jax.random.key(0)))
    bound = 1 / np.sqrt(30)  # torch.nn.init.kaiming_uniform_(weight, a=sqrt(5))
    assert 0.98 * bound < np.abs(a).max() <= bound and abs(a.mean()) < bound / 10
    assert not b.any()
