"""Cross-entropy: equal values and gradients with chunks and meshes; half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.base.errors import TaskError
from engine.config import hardware
from engine.config.schema import MeshSpec
from engine.layers import cross_entropy, loss
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh
from tests.layers.blocks import LikeTpu

X = jax.random.normal(jax.random.key(0), (4, 8, 16))
KERNEL = jax.random.normal(jax.random.key(1), (16, 32))
LABELS = jax.random.randint(jax.random.key(2), (4, 8), 0, 32)


def value_and_gradient(chunks, mesh=None, layout=Layout):
    def total(x, kernel):
        losses = cross_entropy(x, kernel, LABELS, chunks=chunks)
        return (losses * jnp.arange(8.0)).sum(), losses

    with active(layout(mesh=mesh)):
        (_, losses), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(X, KERNEL)
    return jax.device_get((losses, gradient))


def assert_close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


PLAIN = value_and_gradient(1)


def test_cross_entropy_equals_optax():
    wanted = optax.softmax_cross_entropy_with_integer_labels(X @ KERNEL, LABELS)
    np.testing.assert_allclose(PLAIN[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 4])
def test_tpus_gather_the_kernel_once_and_give_equal_values_and_gradients(chunks):
    found = value_and_gradient(chunks, make_mesh(MeshSpec(fsdp=4, tensor=2)), LikeTpu)
    assert_close(found, PLAIN, 1e-5)


@pytest.mark.parametrize("chunks", [2, 8])
def test_chunks_give_equal_values_and_gradients(chunks):
    assert_close(value_and_gradient(chunks), PLAIN, 1e-6)


@pytest.mark.parametrize("mesh", [{"tensor": 8}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("chunks", [1, 4])
def test_split_vocabulary_and_sequence_give_equal_values_and_gradients(mesh, chunks):
    assert_close(value_and_gradient(chunks, make_mesh(MeshSpec(**mesh))), PLAIN, 1e-5)


def test_large_logits_are_computed_in_chunks_of_limited_size(monkeypatch):
    monkeypatch.setattr(loss, "LOGIT_BYTES", 4 * 4 * 2 * 32)  # two positions of each row
    text = jax.jit(lambda x: cross_entropy(x, KERNEL, LABELS)).lower(X).as_text()
    assert "tensor<4x2x32xf32>" in text and "tensor<4x8x32xf32>" not in text


def test_large_logits_are_finite_and_half_precision_is_close():
    assert jnp.isfinite(cross_entropy(1e3 * X, KERNEL, LABELS)).all()
    half = cross_entropy(X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), LABELS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, PLAIN[0], atol=0.2)


def test_indivisible_chunks_raise_task_error():
    with pytest.raises(TaskError, match="chunks = 3 does not divide the 8 positions"):
        cross_entropy(X, KERNEL, LABELS, chunks=3)


def test_logits_of_a_gpu_may_take_a_share_of_its_memory(monkeypatch):
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    h100 = hardware.DEVICES["NVIDIA H100 80GB HBM3"]
    found = []
    for platform, device in [("gpu", h100), ("gpu", None), ("tpu", h100), ("cpu", h100)]:
        monkeypatch.setattr(hardware, "find", lambda kind, device=device: device)
        monkeypatch.setattr(Layout, "platform", platform)
        with active(Layout(mesh=mesh)):
            found.append(loss._chunks(4, 2048, 2048, 32768))
    assert found == [1, 4, 4, 4]


def test_half_precision_chunks_round_the_kernel_once_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(Layout, "platform", "gpu")
    x, kernel = X.astype(jnp.bfloat16), KERNEL.astype(jnp.float32)

    def gradients(chunks):
        def total(x, kernel):
            return cross_entropy(x, kernel, LABELS, chunks=chunks).sum()

        return jax.grad(total, argnums=(0, 1))(x, kernel)

    text = str(jax.make_jaxpr(lambda: gradients(4))())
    assert text.count("bf16[16,32] = convert_element_type") == 1
    (d_x, d_kernel), (whole_x, whole_kernel) = gradients(4), gradients(1)
    assert d_kernel.dtype == jnp.float32
    np.testing.assert_allclose(d_x.astype(jnp.float32), whole_x.astype(jnp.float32), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(d_kernel, whole_kernel, rtol=0.02, atol=0.02)
