"""Products in eight bits: their error, their formats, what stays in 16 or 32 bits, and equal results on every mesh."""

import functools
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from convoy_zoo.models.moe_decoder import MoeLanguageModel
from engine.config.schema import MeshSpec
from engine.layers import Dense, quantization
from engine.layers.platforms import products
from engine.layers.platforms.grouped_products import Blocks
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import batch_sharding, make_mesh
from tests import zoo
from tests.properties import examples

ROWS, FEATURES, OUT = (4, 8), 32, 16
HALF = jnp.bfloat16
SUMS = 8 * 2.0**-9  # the sum of eight parts, each rounded to bfloat16
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


def results(precision, x, kernel, d_y, mesh=None):
    """Returns the product, the gradients of `x` and `kernel` for the gradient `d_y`, in float64."""
    found = _program(precision, mesh)(x, kernel, d_y)
    assert all(a.dtype == HALF for a in found)
    return [np.asarray(a, np.float64) for a in found]


@functools.cache
def _program(precision, mesh):
    def run(x, kernel, d_y):
        with active(Layout(mesh=mesh, precision=precision)):
            y, pullback = jax.vjp(quantization.matmul, x, kernel)
            return (y, *pullback(d_y))

    return jax.jit(run)


def arrays(seed, spread=0.0, size=1.0):
    """Returns x, a kernel and a gradient; `spread` is the standard deviation of their exponents, to the base of 2."""
    rng = np.random.default_rng(seed)
    shapes = ((*ROWS, FEATURES), (FEATURES, OUT), (*ROWS, OUT))
    return [
        jnp.asarray(rng.normal(size=shape) * 2 ** (spread * rng.normal(size=shape)) * size, HALF) for shape in shapes
    ]


def rounding(precision, x, dtype):
    """Returns the largest error of each value of `x` in the format of a precision."""
    x = np.abs(np.asarray(x, np.float64))
    if precision == "int8":  # half a step of 1/127 of the largest value, of the row or of the kernel
        return np.broadcast_to(x.max(axis=None if x.ndim == 2 else -1, keepdims=True) / 254 * 1.001, x.shape)
    info = jnp.finfo(dtype)  # half a unit in the last place; below the normal values, of the smallest
    scale = 2 * x.max() / 2.0 ** (info.maxexp - 1)
    return x * 2.0 ** -(info.nmant + 1) + scale * float(info.smallest_subnormal) / 2


def bound(product, a, error_a, b, error_b):
    """Returns the largest error of a product of rounded operands, with its rounding to bfloat16."""
    a, b = (np.abs(np.asarray(x, np.float64)) for x in (a, b))
    return product(error_a, b) + product(a, error_b) + product(error_a, error_b) + product(a, b) * 2.0**-7


@pytest.mark.parametrize("precision", ["float8", "int8"])
@examples(40)
@given(st.integers(0, 2**16), st.floats(0, 6), st.floats(-30, 30))
def test_products_and_gradients_are_within_the_rounding_of_their_format(precision, seed, spread, exponent):
    x, kernel, d_y = arrays(seed, spread, 2.0**exponent)
    y, d_x, d_kernel = results(precision, x, kernel, d_y)
    exact = [np.asarray(a, np.float64) for a in (x, kernel, d_y)]
    e_x, e_kernel, e_d_y = (rounding(precision, a, t) for a, t in ((x, E4M3), (kernel, E4M3), (d_y, E5M2)))
    if precision == "int8":  # the gradient of the kernel is a product in bfloat16
        e_wide_x, e_wide_d_y = 0 * e_x, 0 * e_d_y
    else:
        e_wide_x, e_wide_d_y = e_x, e_d_y

    def forward(a, b):
        return a @ b

    def to_x(a, b):
        return a @ b.T

    def to_kernel(a, b):
        return np.tensordot(a, b, ((0, 1), (0, 1)))

    x64, kernel64, d_y64 = exact
    assert (np.abs(y - x64 @ kernel64) <= bound(forward, x64, e_x, kernel64, e_kernel)).all()
    assert (np.abs(d_x - to_x(d_y64, kernel64)) <= bound(to_x, d_y64, e_d_y, kernel64, e_kernel)).all()
    assert (np.abs(d_kernel - to_kernel(x64, d_y64)) <= bound(to_kernel, x64, e_wide_x, d_y64, e_wide_d_y)).all()


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_zeros_give_zeros_and_a_value_that_is_not_finite_reaches_the_result(precision):
    x, kernel, d_y = arrays(0)
    assert all((a == 0).all() for a in results(precision, 0 * x, kernel, 0 * d_y))
    for value in (np.nan, np.inf):
        y, _, d_kernel = results(precision, x.at[1, 2, 3].set(value), kernel, d_y)
        assert not np.isfinite(y[1, 2]).any() and not np.isfinite(d_kernel).all()
        assert not np.isfinite(results(precision, x, kernel, d_y.at[1, 2, 3].set(value))[1][1, 2]).any()


@pytest.mark.parametrize("axes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}])
@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_meshes_round_as_one_device_does(precision, axes):
    x, kernel, d_y = arrays(1, 2.0)
    mesh = make_mesh(MeshSpec(**axes), jax.devices()[:8])
    split = batch_sharding(mesh)
    kernel_split = jax.NamedSharding(mesh, jax.P("fsdp", "tensor"))
    placed = (jax.device_put(x, split), jax.device_put(kernel, kernel_split), jax.device_put(d_y, split))
    for wanted, found in zip(results(precision, x, kernel, d_y), results(precision, *placed, mesh), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=SUMS * np.abs(wanted).max())


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_rows_round_alike_alone_and_in_a_batch(precision):
    x, kernel, d_y = arrays(2, 2.0)
    whole = results(precision, x, kernel, d_y)
    parts = [results(precision, x[i : i + 1], kernel, d_y[i : i + 1]) for i in range(len(x))]
    for i in range(2):
        found = np.concatenate([part[i] for part in parts])
        np.testing.assert_allclose(found, whole[i], rtol=0, atol=2.0**-8 * np.abs(whole[i]).max())
    np.testing.assert_allclose(sum(part[2] for part in parts), whole[2], rtol=0, atol=SUMS * np.abs(whole[2]).max())


def products_of(jaxpr) -> Iterator[tuple[str, ...]]:
    """Yields the dtypes of the operands of every product of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "ragged_dot_general"):
            yield tuple(str(x.aval.dtype) for x in equation.invars[:2])
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products_of(inner)


@functools.cache
def traced(precision) -> Counter[tuple[str, ...]]:
    """Returns the number of products of a mixture-of-experts decoder by the dtypes of their operands."""
    task = MoeLanguageModel(vocabulary=64, width=32, hidden=32, depth=2, heads=2, experts=4, capacity_factor=1.0)
    names = ("tokens", "targets", "segment_ids", "positions", "weight")
    example = {name: jax.ShapeDtypeStruct((16,), np.float32 if name == "weight" else np.int32) for name in names}
    program = zoo.program(task, precision=precision, example=example, batch_size=4)
    return Counter(products_of(program.trace(1).jaxpr.jaxpr))


E4, E5 = "float8_e4m3fn", "float8_e5m2"


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [
        ("float8", {(E4, E4): 7, (E5, E4): 7, (E4, E5): 7, ("bfloat16", "bfloat16"): -21}),
        ("int8", {("int8", "int8"): 14, ("bfloat16", "bfloat16"): -14}),
    ],
)
def test_a_decoder_quantizes_dense_layers_and_experts_alone(precision, wanted):
    """Four dense layers of attention and three products of experts: forward, and the two gradients of each.

    The router, attention and the loss have the products that they have in bfloat16.
    """
    found, usual = traced(precision), traced("bfloat16")
    assert {dtypes: n - usual[dtypes] for dtypes, n in found.items() if n != usual[dtypes]} == wanted
    assert not [dtypes for dtypes in usual if dtypes not in found]


@pytest.mark.parametrize(
    ("settings", "shape", "dtype"),
    [
        ({"precision": "bfloat16"}, (32, 16), HALF),
        ({"precision": "float8"}, (32, 10), HALF),
        ({"precision": "int8"}, (2, 32), HALF),
        ({"precision": "float8"}, (32, 16), jnp.float32),
        ({"precision": "int8", "counts_flops": True}, (32, 16), HALF),
    ],
)
def test_other_precisions_small_kernels_and_float32_are_not_quantized(settings, shape, dtype):
    x, kernel = jnp.ones((4, shape[0]), dtype), jnp.ones(shape, HALF)
    with active(Layout(**settings)):
        assert str(jax.make_jaxpr(quantization.matmul)(x, kernel)) == str(jax.make_jaxpr(products.matmul)(x, kernel))


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_a_recomputed_layer_in_a_loop_gives_equal_gradients(precision):
    x, kernel, d_y = arrays(3)
    exact = {"xla_allow_excess_precision": False}  # else XLA:CPU leaves out some roundings to bfloat16
    square = jnp.stack([kernel @ kernel.T, kernel @ kernel.T]) / 16

    def gradient(remat):
        def loss(kernels, x):
            def step(x, kernel):  # a new function, as jax.checkpoint caches traces
                return quantization.matmul(x, kernel)

            step = jax.checkpoint(step) if remat else step
            return (jax.lax.scan(lambda x, k: (step(x, k), None), x, kernels)[0] @ kernel * d_y).sum()

        with active(Layout(precision=precision)):
            return jax.jit(jax.grad(loss, (0, 1)), compiler_options=exact)(square, x)

    zoo.assert_equal(gradient(False), gradient(True))


class Layers(nnx.Module):
    """Two dense layers, with sixteen classes."""

    def __init__(self, rngs):
        self.hidden = Dense(zoo.SIZE, 32, axes=("embed", "mlp"), rngs=rngs)
        self.out = Dense(32, 16, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x, rng):
        return self.out(jnp.tanh(self.hidden(x)))


class Classify(zoo.Classify):
    def build(self, rngs):
        return Layers(rngs)


@pytest.mark.slow
def test_a_step_in_microbatches_equals_the_whole_step_and_has_the_usual_state():
    sgd = {"target": "optax.sgd", "learning_rate": 1.0}

    def arrays_of(program):
        return [(x.shape, x.dtype) for x in jax.tree.leaves(program.abstract_state)]

    usual = arrays_of(zoo.program(Classify(), precision="bfloat16", **sgd))

    def change(precision, accumulate):
        program = zoo.program(Classify(), precision=precision, accumulate=accumulate, **sgd)
        assert arrays_of(program) == usual
        before = jax.device_get(program.init().params)
        after = jax.device_get(zoo.run(program, zoo.batches(1))[0].params)
        assert all(x.dtype == np.float32 for x in after.values())
        return {path: after[path] - before[path] for path in after}

    for precision in ("float8", "int8"):
        whole, parts = change(precision, 1), change(precision, 4)
        for path, x in whole.items():
            np.testing.assert_allclose(parts[path], x, rtol=0, atol=SUMS * np.abs(x).max(), err_msg=path)


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_a_grouped_product_rounds_as_the_product_of_each_group_does(precision):
    sizes = np.array([8, 0, 24])
    rng = np.random.default_rng(4)
    rows, d_y = (jnp.asarray(rng.normal(size=(32, n)), HALF) for n in (32, 16))
    kernels = jnp.asarray(rng.normal(size=(3, 32, 16)), HALF)
    # The largest value of each kernel is equal, so that all have the scale of the whole array.
    kernels = kernels.at[:, 0, 0].set(8)

    @jax.jit
    def run(rows, kernels, d_y):
        with active(Layout(precision=precision)):
            product = functools.partial(quantization.grouped_matmul, sizes=jnp.asarray(sizes), blocks=Blocks(8))
            y, pullback = jax.vjp(lambda rows, kernels: product(rows, kernels), rows, kernels)
            return (y, *pullback(d_y))

    y, d_rows, d_kernels = (np.asarray(a, np.float64) for a in run(rows, kernels, d_y))
    for i, first, last in ((0, 0, 8), (2, 8, 32)):
        wanted = results(precision, rows[first:last], kernels[i], d_y[first:last])
        for found, w in zip((y[first:last], d_rows[first:last]), wanted, strict=False):
            np.testing.assert_allclose(found, w, rtol=0, atol=2.0**-8 * np.abs(w).max())
        exact = np.asarray(rows[first:last], np.float64).T @ np.asarray(d_y[first:last], np.float64)
        np.testing.assert_allclose(d_kernels[i], exact, rtol=0, atol=2.0**-8 * np.abs(exact).max())
    assert not d_kernels[1].any()


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_rows_after_the_last_group_change_no_other_row(precision):
    rng = np.random.default_rng(6)
    rows, d_y = (jnp.asarray(rng.normal(size=(32, n)), HALF) for n in (32, 16))
    kernels = jnp.asarray(rng.normal(size=(2, 32, 16)), HALF)
    sizes = jnp.array([8, 16])

    @jax.jit
    def run(rows, d_y):
        with active(Layout(precision=precision)):
            product = functools.partial(quantization.grouped_matmul, sizes=sizes, blocks=Blocks(8))
            y, pullback = jax.vjp(lambda rows, kernels: product(rows, kernels), rows, kernels)
            d_rows, d_kernels = pullback(d_y)
        return y[:24], d_rows[:24], d_kernels

    found, wanted = (run(rows.at[24:].set(x), d_y.at[24:].set(x)) for x in (jnp.nan, 0))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


@pytest.mark.parametrize(("precision", "dtype"), [("float8", HALF), ("int8", jnp.int32)])
def test_remat_of_dots_keeps_the_results_of_products(precision, dtype):
    x, kernel, _ = arrays(5)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def loss(x, kernel):
        return jnp.tanh(quantization.matmul(x, kernel)).sum()

    with active(Layout(precision=precision)):
        _, pullback = jax.vjp(jax.checkpoint(loss, policy=policy), x, kernel)
    assert ((*ROWS, OUT), dtype) in [(a.shape, a.dtype) for a in jax.tree.leaves(pullback)]
