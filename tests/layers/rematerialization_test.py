"""Rematerialisation changes which values are kept, and no result."""

import functools

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import ConfigError
from engine.layers import checkpoint, remat
from engine.layers.kernels import splash
from engine.parallel.layout import Layout, active
from tests import zoo
from tests.layers import blocks

W = jax.random.normal(jax.random.key(0), (2, 16, 16)) / 4
X = jnp.ones((64, 16))


def layer(w, x):
    hidden = jnp.sin(checkpoint(x @ w[0], "hidden"))
    return jnp.sin(hidden @ w[1])


@functools.cache
def gradient(choice: str):
    """Returns the jaxpr of the gradient of three layers, the number of products in its program, and its value."""

    def loss(w, x):
        with active(Layout(remat=choice)):
            for _ in range(3):
                x = remat(layer)(w, x)
        return x.sum()

    traced = jax.jit(jax.grad(loss)).trace(W, X)
    compiled = traced.lower().compile()
    return str(traced.jaxpr), str(compiled.as_text()).count(" dot("), compiled(W, X)


def test_remat_recomputes_values_and_keeps_the_gradient():
    _, none, want = gradient("none")
    # Three layers have six products; keeping "hidden" saves three of the recomputations. The last layer runs only in
    # the backward pass, since its value is not used.
    for choice, more in (("full", 6 - 2), ("dots", 0), ("save:hidden", 3 - 1), ("save:other", 6 - 2)):
        _, products, found = gradient(choice)
        zoo.assert_close(found, want, 1e-6)
        assert products == none + more, choice


@pytest.mark.parametrize(("choice", "kernels"), [("full", 4), ("dots", 3), ("save:attention", 3), ("save:other", 4)])
def test_kernel_of_splash_attention_runs_once_if_its_results_are_kept(choice, kernels):
    """The backward pass has two kernels. A layer without remat thus has three."""

    def attend(x):
        return checkpoint(jnp.sin(splash(x, x, x, causal=True, segment_ids=None)), "attention")

    def loss(x):
        with active(Layout(remat=choice)):
            return (remat(attend)(x).astype(jnp.float32) ** 2).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((1, 128, 1, 128), jnp.bfloat16)))
    assert text.count("pallas_call") == kernels


def test_offload_moves_named_values_to_host_memory():
    text, _, found = gradient("offload:hidden")
    zoo.assert_close(found, gradient("none")[2], 1e-6)
    assert "host>" in text and "host>" not in gradient("full")[0]


@pytest.mark.slow
def test_remat_reduces_the_memory_of_a_stack():
    sizes, results = {}, {}
    for choice in ("none", "full"):
        layout = Layout(remat=choice)
        call, params = blocks.gradient(blocks.stack(6, layout), layout)
        batch = blocks.batch(64)
        compiled = call.lower(params, *batch).compile()
        (loss, _), grads = compiled(params, *batch)
        sizes[choice], results[choice] = compiled.memory_analysis().temp_size_in_bytes, (loss, grads)
    assert sizes["full"] < sizes["none"]
    zoo.assert_close(results["full"], results["none"], 1e-6)


def test_layout_records_the_use_of_remat():
    layout = Layout()
    with active(layout):
        jax.eval_shape(remat(layer), W, X)
    assert layout.used == {"remat", "named:hidden"}


def test_unknown_value_name_raises_config_error():
    task = blocks.Classify()
    zoo.program(task, layout={"remat": "save:hidden"})
    with pytest.raises(ConfigError) as error:
        zoo.program(task, layout={"remat": "save:hidden,hiden"})
    assert str(error.value) == (
        "train.remat = 'save:hidden,hiden': the model of Classify has no value named 'hiden'. Did you mean "
        "hidden? Named values: hidden. A layer names a value with engine.layers.checkpoint(x, name)."
    )
