import jax
import jax.numpy as jnp
import numpy as np

from engine.perception import frustum_points, lift_splat, lifting
from tests.perception.goldens import differing


def test_sums_and_gradients_equal_pytorch():
    assert differing("lift_splat", 2) == []


def test_the_sums_of_gpus_and_of_other_platforms_are_equal():
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(2, 6, 5)).astype(np.float32), rng.random((2, 6, 4), np.float32)
    index = rng.integers(0, 8, (2, 6, 4), np.int32)  # cell 7 does not exist
    out = rng.normal(size=(2, 7, 5)).astype(np.float32)

    @jax.jit
    def both(features, weights):
        ways = (lifting.sum_at_once, lifting.sum_by_depth)
        results = [jax.vjp(lambda x, w, way=way: way(x, w, index, 7), features, weights) for way in ways]
        return [(value, *pull(out)) for value, pull in results]

    for ours, theirs in zip(*both(features, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_points_project_back_to_their_pixels_and_depths():
    rng = np.random.default_rng(0)
    intrinsics = np.array([[[[50, 1, 32], [0, 60, 20], [0, 0, 1]]] * 3] * 2, np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 3, 1, 1))
    poses[..., :3, :3] = np.linalg.qr(rng.normal(size=(2, 3, 3, 3)))[0]
    poses[..., :3, 3] = rng.normal(size=(2, 3, 3))
    pixels, depths = rng.uniform(0, 64, (4, 5, 2)).astype(np.float32), np.array([2, 5, 40], np.float32)
    points = jax.jit(frustum_points)(intrinsics, poses, pixels, depths)
    assert points.shape == (2, 3, 4, 5, 3, 3)
    homogeneous = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1)
    seen = np.einsum("bcij,bcyxdj->bcyxdi", np.linalg.inv(poses)[:, :, :3], homogeneous)
    projected = np.einsum("bcij,bcyxdj->bcyxdi", intrinsics, seen)
    np.testing.assert_allclose(seen[..., 2], np.broadcast_to(depths, seen.shape[:-1]), rtol=1e-4)
    flat = projected[..., :2] / projected[..., 2:]
    np.testing.assert_allclose(flat, np.broadcast_to(pixels[:, :, None], flat.shape), atol=1e-2)


def test_products_of_poses_have_the_highest_precision():
    """Accelerators round the factors of other products to bfloat16: half a metre at a distance of 100 m."""
    arguments = (jnp.eye(3)[None, None], jnp.eye(4)[None, None], jnp.ones((2, 2)), jnp.ones(3))
    products = [
        equation
        for equation in jax.make_jaxpr(frustum_points)(*arguments).eqns
        if "dot_general" in str(equation.primitive)
    ]
    assert len(products) == 2 and all("HIGHEST" in str(each.params["precision"]) for each in products)


def test_sums_of_half_precision_are_float32():
    features, depth = jnp.full((1, 500, 1), 0.01, jnp.bfloat16), jnp.ones((1, 500, 1), jnp.bfloat16)
    found = jax.jit(lambda x, depth: lift_splat(x, depth, jnp.zeros((1, 500, 1), jnp.int32), 1))(features, depth)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, 0, 0], 500 * features[0, 0, 0].astype(jnp.float32), rtol=1e-5)
