"""A driving scene for the tests of augmentations: lidar, radar, boxes, tracks, lines and two cameras."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine import ArraySource, Loss, Task
from engine.augmentation import Boxes, Camera, Lines, Points, Scene, Tracks

HEIGHT, WIDTH = 24, 40
SCENE = Scene(
    points=[Points("lidar", velocities=(4,)), Points("radar", to_ego="calibration/radar/to_ego", velocities=(3,))],
    boxes=[
        Boxes("boxes", valid="boxes_valid", others=("label",)),
        Boxes(pose="box_to_ego", size="box_size"),
        Boxes(center="center", size="box_size_2", yaw="yaw", velocity="velocity"),
    ],
    tracks=Tracks("track/position", heading="track/heading", velocity="track/velocity", valid="track/valid"),
    lines=Lines("map/points", direction="map/direction", valid="map/valid"),
    cameras=Camera(
        "images",
        "calibration/cameras/intrinsics",
        to_ego="calibration/cameras/to_ego",
        aligned=("depth",),
        stacked=True,
    ),
    world=("ego_to_world",),
    times=("time_s",),
)


def pose(rng, yaw=None):
    """Returns a rigid pose, float32 `[4, 4]`."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    found = np.eye(4)
    found[:3, :3] = axes * np.sign(np.linalg.det(axes))
    if yaw is not None:
        found[:2, :3] = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0]]
        found[2, :3] = [0, 0, 1]
    found[:3, 3] = rng.normal(size=3) * 3
    return found.astype(np.float32)


def example(seed=0, points=50, boxes=5, height=HEIGHT, width=WIDTH):
    """Returns a scene of random numbers; its cameras look ahead, to the left, and are slightly tilted."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=10.0):
        return (rng.normal(size=shape) * scale).astype(np.float32)

    table = normal(boxes, 9)
    table[:, 3:6] = rng.uniform(1, 4, (boxes, 3))
    table[:, 6] = rng.uniform(-np.pi, np.pi, boxes)
    intrinsics = np.array([[30, 0.5, width / 2 + 1], [0, 31, height / 2 - 2], [0, 0, 1]], np.float32)
    return {
        "lidar": normal(points, 6),
        "radar": normal(7, 5),
        "boxes": table,
        "boxes_valid": np.arange(boxes) != 1,
        "label": np.arange(boxes, dtype=np.int32),
        "box_to_ego": np.stack([pose(rng, yaw) for yaw in table[:, 6]]),
        "box_size": rng.uniform(1, 4, (boxes, 3)).astype(np.float32),
        "box_size_2": rng.uniform(1, 4, (boxes, 3)).astype(np.float32),
        "center": normal(boxes, 3),
        "yaw": rng.uniform(-np.pi, np.pi, boxes).astype(np.float32),
        "velocity": normal(boxes, 2),
        "track": {
            "position": rng.normal(size=(3, 11, 2)) * 10,
            "heading": rng.uniform(-np.pi, np.pi, (3, 11)).astype(np.float32),
            "velocity": normal(3, 11, 2),
            "valid": rng.random((3, 11)) < 0.8,
        },
        "map": {
            "points": normal(4, 6, 3),
            "direction": normal(4, 6, 3, scale=1),
            "valid": rng.random((4, 6)) < 0.8,
        },
        "images": rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8),
        "depth": normal(2, height, width),
        "calibration": {
            "radar": {"to_ego": pose(rng)},
            "cameras": {
                "intrinsics": np.stack([intrinsics, intrinsics]),
                "to_ego": np.stack([pose(rng), pose(rng)]),
            },
        },
        "ego_to_world": pose(rng).astype(np.float64),
        "time_s": np.float32(rng.random() * 10) * np.ones((), np.float32),
        "name": f"scene {seed}",
    }


def window(frames=3, **settings):
    """Returns a window of frames: each entry has a leading dimension of time."""
    import jax

    several = [example(seed, **settings) for seed in range(frames)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *several)


def flat(tree, prefix=""):
    """Returns the entries of an example by path."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): tree}
    return {path: leaf for name, inner in tree.items() for path, leaf in flat(inner, f"{prefix}{name}/").items()}


def assert_same(one, two):
    """Asserts that two examples have the same structure, dtypes and bits."""
    one, two = flat(one), flat(two)
    assert list(one) == list(two)
    for path, value in one.items():
        assert np.asarray(value).dtype == np.asarray(two[path]).dtype, path
        np.testing.assert_array_equal(value, two[path], err_msg=path)


def assert_close(one, two, at_most=2e-5):
    """Asserts that two examples agree up to rounding, and angles up to multiples of 2 pi."""
    one, two = flat(one), flat(two)
    assert list(one) == list(two)
    for path, value in one.items():
        if isinstance(value, str):
            assert value == two[path]
            continue
        assert value.dtype == two[path].dtype and value.shape == two[path].shape, path
        if path.endswith(("yaw", "heading")):
            value, other = np.exp(1j * value), np.exp(1j * two[path])
        elif path == "boxes":
            value, other = (np.concatenate([x, np.cos(x[..., 6:7])], -1) for x in (value, two[path]))
            value, other = (np.delete(x, 6, -1) for x in (value, other))
        else:
            other = two[path]
        np.testing.assert_allclose(value, other, rtol=at_most, atol=at_most, err_msg=path)


def rows(count=24):
    """Returns a source of sweeps of 16 points with the centre of their box, for runs."""
    rng = np.random.default_rng(0)
    center = rng.uniform(-5, 5, (count, 1, 2)).astype(np.float32)
    points = center + rng.normal(size=(count, 16, 2)).astype(np.float32)
    return ArraySource({"points": np.concatenate([points, 0 * points[..., :1]], -1), "center": center})


class Center(Task):
    """Predicts the centre of a sweep as a linear function of the mean of its points."""

    def build(self, rngs):
        return nnx.Linear(2, 2, rngs=rngs)

    def loss(self, model, batch, rng):
        error = model(batch["points"][..., :2].mean(1)) - batch["center"][:, 0]
        return Loss.of((error**2).sum(-1), metrics={})

    def predict(self, model, batch):
        return model(jnp.mean(batch["points"][..., :2], 1))
