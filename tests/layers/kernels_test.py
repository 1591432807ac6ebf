"""Choice of the attention kernel of one device, and splash attention in interpret mode.

cuDNN's kernel is not run, since these tests have no GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers import kernels
from engine.parallel.layout import Layout
from tests.layers import plain


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "segmented", "time"), [(True, True, 97), (False, False, 97), (False, False, 128)])
def test_splash_result_and_gradients_equal_the_formula_at_every_length(causal, segmented, time):
    function = functools.partial(kernels.splash, interpret=True)
    plain.check(function, causal=causal, segmented=segmented, time=time)


@pytest.mark.parametrize(("causal", "segmented"), [(True, True), (True, False), (False, False)])
def test_padding_of_an_odd_length_for_cudnn_leaves_the_formula(causal, segmented):
    function = functools.partial(kernels.cudnn, implementation="xla")
    plain.check(function, causal=causal, segmented=segmented, time=7)


@pytest.mark.parametrize(
    ("time", "taken"), [(128, True), (196, True), (98, True), (1025, True), (49, False), (5, False)]
)
def test_splash_is_used_where_padding_pays(time, taken):
    assert kernels.splash_takes(jnp.zeros((1, time, 2, 8))) == taken


@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        ((1, 8, 2, 64), "bfloat16", True),
        ((1, 8, 2, 128), "float16", True),
        ((1, 8, 2, 64), "float32", False),
        ((1, 8, 2, 256), "bfloat16", False),
        ((1, 8, 2, 36), "bfloat16", False),
        ((1, 7, 2, 64), "bfloat16", True),
    ],
)
def test_cudnn_is_used_for_supported_inputs(shape, dtype, taken):
    assert kernels.cudnn_takes(jnp.zeros(shape, dtype)) == taken


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_unsupported_inputs_run_in_plain_xla(platform):
    # cuDNN does not support float32, and 48 positions are too few for a TPU's lanes.
    plain.check(functools.partial(kernels.attend, platform), causal=True, segmented=True)


def test_divide_heads_repeats_as_rarely_as_possible():
    k = jnp.arange(6.0).reshape(1, 1, 6, 1)
    np.testing.assert_array_equal(kernels.divide_heads(k, 3), k)
    np.testing.assert_array_equal(kernels.divide_heads(k, 4).ravel(), np.arange(6).repeat(2))
    assert kernels.divide_heads(k[:, :, :1], 8).shape == (1, 1, 8, 1)


def test_specs_follow_the_rules_and_skip_indivisible_dimensions():
    here = Layout(mesh=plain.mesh(data=2, context=2, tensor=2))
    spec, segment_spec, parts = kernels.specs(here, jnp.zeros((4, 8, 6, 2)), "context")
    assert spec == jax.P("data", "context", "tensor", None)
    assert segment_spec == jax.P("data", "context")
    assert parts == 2
    assert kernels.specs(here, jnp.zeros((4, 8, 3, 2)))[0] == jax.P("data", None, None, None)
