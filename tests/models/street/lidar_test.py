"""Lidar detection: pillars equal a loop, predictions of perfect outputs score one, and the baseline finds a car."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from convoy_zoo.models.street.lidar import (
    BOX,
    CELL,
    CELLS,
    HEIGHTS,
    LidarDetection,
    Pillars,
    at_cells,
    covered,
    encode,
    heatmap,
    largest,
    split,
    sweeps,
    winners,
)
from convoy_zoo.models.street.lidar_baseline import detect, difficulty
from convoy_zoo.models.street.scenes import CLASSES, EXTENT, SIZES
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from tests.merging import results


@pytest.fixture(scope="module")
def batch():
    source = sweeps(3, seed=5)
    examples = [source[index] for index in range(3)]
    return jax.tree.map(lambda *rows: np.stack(rows), *examples)


class Perfect:
    """Returns the logits and codes of the labels."""

    def __init__(self, batch):
        boxes, labels, present = batch["boxes"], batch["label"], batch["mask"]["objects"]
        target, cell = map(np.asarray, heatmap(boxes, labels, present))
        moving = 2.0 * batch["moving"][..., None] - 1
        code = np.concatenate([np.asarray(encode(boxes, labels, cell)), moving], -1)
        codes = np.zeros((len(boxes), CELLS, CELLS, BOX), np.float32)
        for n, k in np.argwhere(present):
            x, y = cell[n, k].astype(int)
            codes[n, y, x] = code[n, k]
        self.outputs = jnp.where(jnp.asarray(target) == 1, 6.0, -6.0), jnp.asarray(codes)

    def __call__(self, points, mask):
        return with_codes(self.outputs)


def with_codes(outputs):
    """Returns logits, and a function that returns codes, for both of all cells."""
    return outputs[0], functools.partial(at_cells, outputs[1])


@pytest.mark.slow
def test_outputs_equal_to_the_labels_score_one(batch):
    task = LidarDetection()
    evaluate = jax.jit(lambda outputs, batch: task.evaluate(lambda *_: with_codes(outputs), batch)["nds"])
    found = results(evaluate(Perfect(batch).outputs, batch))
    assert found["m/ap"] > 0.98 and found["m"] > 0.97  # two objects in one cell are one box
    toward = -5 * np.sign(batch["boxes"][..., :2])
    moved = {**batch, "boxes": np.concatenate([batch["boxes"][..., :2] + toward, batch["boxes"][..., 2:]], -1)}
    assert results(evaluate(Perfect(moved).outputs, batch))["m/ap"] < 0.2
    own, other = (sums_of(task.loss(Perfect(b), batch, None)) for b in (batch, moved))
    assert own["heat"] < 0.1 * other["heat"] and own["box"] < 0.1 * other["box"]


def test_predictions_are_drawn_over_the_points_in_the_square(batch):
    pytest.importorskip("matplotlib")
    task, example = LidarDetection(), jax.tree.map(lambda rows: rows[0], batch)
    prediction = {
        "boxes": example["boxes"],
        "score": np.where(example["mask"]["objects"], 0.5, 0.1),
        "label": example["label"],
    }
    axes = task.figure(example, prediction).axes[0]
    assert len(axes.texts) == example["mask"]["objects"].sum()  # the others have a score below 0.3
    assert axes.texts[0].get_text() == f"{CLASSES[example['label'][0]]} 0.50"
    assert np.abs(axes.lines[0].get_xdata()).max() < EXTENT


def sums_of(loss):
    return {name: float(jnp.sum(term.total)) for name, term in loss.terms.items()}


def test_pillars_equal_a_loop_and_ignore_padding():
    rng, pillars = np.random.default_rng(0), Pillars(4, nnx.Rngs(0))
    points = np.column_stack([rng.uniform(-1.2 * EXTENT, 1.2 * EXTENT, (600, 2)), rng.normal(size=(600, 2))])
    points[300:, :2] = rng.uniform(-2, 2, (300, 2))  # several in a cell
    points, mask = points[None].astype(np.float32), rng.random((1, 600)) < 0.7
    grid = np.asarray(jax.jit(lambda points, mask: pillars(points, mask))(points, mask))[0]
    wanted = np.zeros_like(grid)
    for point in points[0][mask[0]]:
        place = (point[:2] + EXTENT) / np.float32(CELL)
        column, row = np.floor(place).astype(int)
        if 0 <= row < CELLS and 0 <= column < CELLS:
            near = np.maximum(1 - np.abs(point[2] - HEIGHTS) / 0.4, 0)
            x = np.array([*point[:2] / EXTENT, *(place - [column, row] - 0.5), *point[2:], *near], np.float32)
            y = np.maximum(x @ np.asarray(pillars.linear.kernel[...]), 0)  # the bias starts at 0
            wanted[row, column] = np.maximum(wanted[row, column], y)
    np.testing.assert_allclose(grid, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted > 0).any(-1).sum() > 100


def test_each_device_computes_the_grid_of_its_own_rows():
    mesh, (graph, values) = make_mesh(MeshSpec(data=4), jax.devices()[:4]), nnx.split(Pillars(4, nnx.Rngs(0)))

    def spec(axes, shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def features(values, points, mask, cell):
        return at_cells(nnx.merge(graph, values)(points, mask), cell, cell)

    values = jax.tree.map(lambda x: spec((), x.shape, x.dtype), values)
    inputs = (((300, 4), "float32"), ((300,), "bool"), ((9,), "int32"))  # points, their mask, and cells
    rows = [spec(["data"], (4, *shape), dtype) for shape, dtype in inputs]
    program = jax.jit(features).lower(values, *rows).compile()
    assert program.output_shardings.is_equivalent_to(rows[0].sharding, 3)
    text = program.as_text()
    assert text and not re.search(
        r"\ball-|\bcollective-|reduce-scatter", text
    )  # no device needs the points or cells of another one


def test_the_heatmap_is_one_at_centres_only(batch):
    target, cell = heatmap(batch["boxes"], batch["label"], batch["mask"]["objects"])
    n, k = np.argwhere(batch["mask"]["objects"]).T
    x, y = np.asarray(cell[n, k]).astype(int).T
    assert (np.asarray(target)[n, y, x, batch["label"][n, k]] == 1).all()
    assert (np.asarray(target) == 1).sum() == len({*zip(n, y, x, batch["label"][n, k], strict=True)})
    assert target.shape[1:] == (CELLS, CELLS, len(CLASSES))


def test_the_derivative_of_the_largest_goes_to_the_points_that_won():
    rng = np.random.default_rng(0)
    x, index = nnx.relu(rng.normal(size=(500, 3)).astype(np.float32)), rng.integers(0, 45, 500)  # 40 or more: dropped
    weight = rng.normal(size=(40, 3)).astype(np.float32)

    def plain(x):
        return (jnp.zeros((40, 3)).at[index].max(x, mode="drop") * weight).sum()

    wanted = np.where(x > 0, jax.grad(plain)(x), 0)
    found = jax.grad(lambda x: (largest(x, index, 40) * weight).sum())(x)
    np.testing.assert_array_equal(found, wanted)
    assert np.count_nonzero(wanted) > 100


def test_the_first_of_equal_values_in_half_precision_wins():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(500, 3)), 0).round(1)  # many are equal
    x[0] = [np.nan, -np.nan, -0.0]
    x, index = jnp.asarray(x, jnp.bfloat16), rng.integers(0, 45, 500)  # 40 or more: dropped
    index[0] = 0
    values, place = map(np.asarray, winners(x, index, 40))
    np.testing.assert_array_equal(values[1:], np.asarray(jnp.zeros((40, 3), x.dtype).at[index].max(x, mode="drop"))[1:])
    assert np.isnan(values[0, :2].astype(np.float32)).all()
    for cell, feature in np.argwhere(values > 0):
        equal = (index == cell) & (np.asarray(x)[:, feature] == values[cell, feature])
        assert place[cell, feature] == np.flatnonzero(equal)[0]
    with pytest.raises(ValueError, match="at most 65,536"):
        winners(jnp.zeros((2**16 + 1, 1), jnp.bfloat16), jnp.zeros(2**16 + 1, int), 4)


def test_pillars_in_half_precision_have_the_values_and_the_gradient_of_float32(batch):
    points, mask = batch["points"][:1, ::8], batch["mask"]["points"][:1, ::8]
    graph, params = nnx.split(Pillars(8, nnx.Rngs(0)))
    params = jax.tree.map(lambda x: (x + 0.1).astype(jnp.bfloat16), params)
    weight = np.random.default_rng(0).normal(size=(1, CELLS, CELLS, 8)).astype(np.float32)

    def grid(params, dtype):
        found = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))(points, mask).astype(jnp.float32)
        return (found * weight).sum(), found

    found, wanted = (
        jax.jit(jax.grad(functools.partial(grid, dtype=dtype), has_aux=True))(params)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    np.testing.assert_allclose(found[1], wanted[1], rtol=0.02, atol=0.02)
    assert (wanted[1] > 0).sum() > 1000
    for a, b in zip(*(jax.tree.leaves(x[0]) for x in (found, wanted)), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)


def test_a_cell_is_split_into_the_cells_in_it():
    rows = np.arange(4 * 4).reshape(1, 4, 4, 1) * [1, 1] + [0, 100]  # a finer grid of two features
    coarse = rows.reshape(1, 2, 2, 2, 2, 2).swapaxes(2, 3).reshape(1, 2, 2, 8)
    assert coarse[0, 0, 0, ::2].tolist() == [0, 1, 4, 5]
    np.testing.assert_array_equal(split(coarse), rows)


def test_a_centre_near_a_better_one_of_its_class_is_dropped():
    boxes = np.zeros((1, 5, 9), np.float32)
    boxes[0, :, 0] = [0, 1, 1, 9, 9.5]
    label = np.array([[0, 0, 2, 2, 2]])  # cars, pedestrians
    assert np.asarray(covered(boxes, label)).tolist() == [[False, True, False, False, False]]


def test_the_baseline_accepts_points_at_the_edge_of_the_square():
    points = np.zeros((8, 4), np.float32)
    points[:4, :2] = np.nextafter(np.float32(EXTENT), np.float32(0))
    points[:4, 2] = np.linspace(1, 2, 4)
    assert len(detect(points)[0]) == 1


def test_a_class_without_objects_has_no_quantiles():
    example = {
        "label": np.zeros(2, int),
        "hits": np.array([10, 10]),
        "alone": np.array([40, 10]),
        "points": [[0.0] * 4],
    }
    lines = [line.split() for line in difficulty([example]).splitlines()]
    assert lines[1] == ["car", "2.0", "50%", "10,", "10,", "10"]
    assert lines[2] == ["truck", "0.0"]


def test_the_baseline_finds_a_car_on_a_plane():
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(-30, 30, (5000, 2)), np.zeros(5000)])
    side = np.column_stack([rng.uniform(8, 12.5, 300), np.full(300, 4.0), rng.uniform(0, 1.6, 300)])
    back = np.column_stack([np.full(300, 8.0), rng.uniform(4, 5.85, 300), rng.uniform(0, 1.6, 300)])
    points = np.concatenate([ground, side, back])
    boxes, _, classes = detect(np.column_stack([points, np.zeros(len(points))]))
    assert classes.tolist() == [0]
    np.testing.assert_allclose(boxes[0, :2], [10.25, 4.925], atol=0.2)
    np.testing.assert_allclose(boxes[0, 3:6], SIZES[0])
