import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from engine.parallel.rules import RULES, partition_spec
from engine.perception import PolylineEncoder

WIDTH = 8
POINTS = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
VALID = jnp.array([[5, 3, 0], [1, 2, 4]])[..., None] > jnp.arange(5)
ENCODER = PolylineEncoder(4, WIDTH, rngs=nnx.Rngs(1))
RUN = nnx.jit(lambda model, *x: model(*x))


def test_result_equals_a_loop_over_the_points_of_each_polyline():
    found = RUN(ENCODER, POINTS, VALID)
    assert found.shape == (2, 3, WIDTH)
    for at in np.ndindex(2, 3):
        x = np.asarray(POINTS[at][VALID[at]], np.float64)
        for layer, norm in zip(ENCODER.layers, ENCODER.norms, strict=True):
            assert layer.bias is not None
            x = x @ np.asarray(layer.kernel.get_value(), np.float64) + np.asarray(layer.bias.get_value())
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.epsilon) * np.asarray(norm.scale.get_value())
            x = np.maximum(x, 0)
            x = np.concatenate([x, np.broadcast_to(x.max(0, initial=0), x.shape)], -1)
        np.testing.assert_allclose(found[at], x.max(0, initial=0), atol=1e-5)
    assert (found[0, 2] == 0).all()


def test_padding_and_the_order_of_points_change_neither_results_nor_gradients():
    def total(model, points, valid):
        return (model(points, valid) ** 2).sum()

    run = nnx.jit(nnx.value_and_grad(total))
    value, gradient = run(ENCODER, POINTS, VALID)
    padded = jnp.where(VALID[..., None], POINTS, jnp.nan)
    other, moved = run(ENCODER, padded[:, :, ::-1], VALID[:, :, ::-1])
    np.testing.assert_allclose(value, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, moved)


def test_points_with_an_odd_number_of_features_are_encoded_on_a_mesh():
    mesh = make_mesh(MeshSpec(data=1, fsdp=4, tensor=2))
    layers = PolylineEncoder(3, WIDTH, rngs=nnx.Rngs(1)).layers
    specs = [partition_spec("kernel", layer.kernel.shape, layer.axes, RULES, mesh) for layer in layers]
    assert specs == [P(None, None), P("fsdp", None), P("fsdp", None)]
