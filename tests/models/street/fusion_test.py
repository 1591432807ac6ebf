"""Fusion starts with the outputs of the models of each sensor, and each loss trains with its own count."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.street.bev import Bev, Views
from convoy_zoo.models.street.camera_scenes import CameraScenes
from convoy_zoo.models.street.cameras import CAMERAS
from convoy_zoo.models.street.fusion import Fusion, scenes
from convoy_zoo.models.street.lidar import LidarDetection
from engine.training.arrays import cast
from engine.training.model import describe


@pytest.fixture(scope="module")
def batch():
    source = scenes(2, seed=5)
    return jax.tree.map(lambda *rows: np.stack(rows), *[source[index] for index in range(2)])


def test_fused_scenes_are_the_scenes_of_the_cameras_with_a_sweep(batch):
    alone = CameraScenes(2, seed=5)[1]
    assert all(np.array_equal(alone[name], batch[name][1]) for name in alone)
    present = batch["mask"]["objects"][1]
    boxes = batch["boxes"][1][present][batch["label"][1][present] < 2]
    inside = boxes[np.abs(boxes[:, :2]).max(1) < 31]
    row, column = ((inside[:, axis] + 32) / 0.5 for axis in (1, 0))
    taken = batch["masks"][1][row.astype(int), column.astype(int), 0]
    assert len(taken) > 3 and taken.mean() > 0.7  # others are hidden from the cameras, which are lower


def test_sweeps_are_the_same_without_images():
    seen, alone = scenes(2, seed=5)[1], scenes(2, seed=5, images=False)[1]
    assert "images" in seen and "images" not in alone and {"points", "boxes", "label", "hits"} < set(alone)
    jax.tree.map(np.testing.assert_array_equal, alone, {name: seen[name] for name in alone})


@pytest.mark.slow
def test_an_untrained_fusion_predicts_what_both_models_predict(batch):
    task = Fusion(lidar_width=8, camera_width=8)
    model = task.build(nnx.Rngs(0))
    model.eval()

    def boxes(found):
        logits, codes_at = found
        rows, columns = (x.reshape(1, -1).repeat(len(logits), 0) for x in np.indices(logits.shape[1:3]))
        return logits, codes_at(rows, columns)

    def terms(loss):
        return {name: (term.total, term.weight) for name, term in loss.terms.items()}

    @jax.jit
    def outputs(batch):
        fused = model(batch)
        lidar, bev = model.lidar(batch["points"], batch["mask"]["points"]), model.bev(batch)
        loss = terms(task.loss(lambda _: fused, batch, None))
        alone = terms(LidarDetection(8).loss(lambda *_: lidar, batch, None))
        alone = {f"detection/{name}": term for name, term in alone.items()}
        alone |= terms(Bev(8).loss(lambda _: bev, batch, None))
        return (boxes(fused[0]), fused[1], loss), (boxes(lidar), bev, alone)

    found, wanted = outputs(batch)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), a, b)
    np.testing.assert_allclose(found[2]["detection/box"][1].sum(), batch["mask"]["objects"].sum())
    assert set(found[2]) == set(wanted[2])
    for name, (total, weight) in found[2].items():
        np.testing.assert_allclose(total, wanted[2][name][0], rtol=1e-4)
        assert (weight == wanted[2][name][1]).all()


@pytest.mark.parametrize(
    ("task", "full"),  # products in float32: of directions with the poses of cameras
    [(LidarDetection(8), 0), (Views(8), 0), (Bev(8), 2), (Fusion(8, 8), 2)],
    ids=["lidar", "views", "bev", "fusion"],
)
def test_half_precision_is_for_all_products_but_those_of_poses(task, full, batch):
    model = describe(task)

    def totals(params, state, examples):
        module = model.module(cast(params, jnp.bfloat16), state, None)
        found = task.loss(module, cast(examples, jnp.bfloat16, task.full_precision), None)
        return [term.total for term in getattr(found, "terms", {"": found}).values()]

    lowered = jax.jit(totals).lower(model.params, model.model_state, batch)
    assert {total.dtype for total in lowered.out_info} == {jnp.dtype("float32")}
    products = re.findall(
        r"stablehlo\.(?:convolution|dot_general).*: \(tensor<(.*?)>, tensor<(.*?)>\)", lowered.as_text()
    )
    kinds = [{shape.split("x")[-1] for shape in operands} for operands in products]
    assert kinds.count({"f32"}) == full and kinds.count({"bf16"}) == len(kinds) - full >= 6


def test_the_figure_draws_boxes_around_their_pixels_and_cells_on_the_ground(batch):
    pytest.importorskip("matplotlib")
    example = jax.tree.map(lambda rows: rows[0], batch)
    masks = np.zeros((*example["masks"].shape,))
    masks[64, 84, 1] = 1  # 10.25 m ahead, 0.25 m to the left
    box = np.array([[10.0, 0, 1, 2, 2, 2, 0, 0, 0], [0.0, 20, 1, 2, 2, 2, 0, 0, 0]])
    figure = Fusion().figure(example, {"masks": masks, "boxes": box, "score": np.array([0.9, 0.1])})
    axes = {axis.get_title(): axis for axis in figure.axes}
    assert [len(axes[camera].images) for camera in CAMERAS] == [1] * len(CAMERAS)
    front = [(line.get_marker(), np.asarray(line.get_data())) for line in axes["front"].lines]  # data: [2, points]
    dots = [points for marker, points in front if marker == "." and points.shape[1]]
    edges = [points for _, points in front if points.shape[1] == 2]
    assert len(dots) == 1 and len(edges) == 12
    x, y = np.concatenate(edges, axis=1)
    assert x.min() < dots[0][0, 0] < x.max() and y.min() < dots[0][1, 0] < y.max()
    left = [np.asarray(line.get_xdata()) for line in axes["front_left"].lines]
    assert sum(len(x) == 2 for x in left) <= 12  # the other has a low score
