import contextlib
import pickle
from typing import Any

import numpy as np
import pytest

import engine
from engine import Padded
from engine.augmentation import Boxes, Points, Rotate, SampleObjects, Scene
from engine.augmentation.footprints import inside, overlaps
from engine.augmentation.sample_objects import without_collisions
from engine.base.errors import DataError
from engine.data.adapt import as_source
from engine.data.batches import Batches
from engine.data.reader import read
from tests.augmentation.footprints import shared_area
from tests.augmentation.frames import Frames, pose
from tests.augmentation.scenes import assert_same

SCENE = Scene(points="points", boxes=Boxes("boxes", others=("kind", "own")))


def step(source=None, **settings) -> Any:
    return SampleObjects(**{"label": "kind", "scene": SCENE, **settings}).prepared(
        as_source(source or Frames(), "test")
    )


def drawn(sample, index=1, seed=0, source=None):
    frame = (source or Frames())[index]
    parameters = sample.draw(np.random.default_rng(seed), frame)
    return frame, parameters, sample.apply(frame, parameters)


def reference(frame, objects, numbers):
    """Returns the boxes and points with objects inserted one by one, by clipped polygons."""
    boxes, points = frame["boxes"].tolist(), frame["points"]
    for number in numbers.tolist():
        box = objects.geometry[number]
        if all(shared_area(box, np.array(other)) < 1e-9 for other in boxes):
            boxes.append(objects.rows("boxes", np.array([number]))[0].tolist())
            points = np.concatenate([points[~inside(points, box)], objects.points(number)])
    return np.array(boxes, np.float32), points


@pytest.mark.parametrize("seed", range(6))
def test_inserted_objects_agree_with_a_plain_reference(seed):
    sample = step(count=12)
    frame, parameters, after = drawn(sample, seed=seed)
    boxes, points = reference(frame, sample.objects, parameters)
    np.testing.assert_array_equal(after["boxes"], boxes)
    assert len(points) == len(after["points"])
    np.testing.assert_array_equal(np.sort(after["points"], axis=0), np.sort(points, axis=0))
    assert len(frame["boxes"]) < len(boxes) < len(frame["boxes"]) + 12  # some of them collide
    assert len(after["kind"]) == len(after["own"]) == len(boxes)
    assert after["points"].dtype == np.float32 and after["kind"].dtype == np.int32
    assert_same(drawn(sample, seed=seed)[2], after)


def test_no_boxes_overlap_and_each_has_its_points():
    sample = step(count=30)
    for index in range(4):
        _, _, after = drawn(sample, index, seed=index)
        geometry = after["boxes"][:, :7].astype(np.float64)
        together = overlaps(geometry, geometry)
        assert together.sum() == len(geometry)  # of each with itself
        for box, own in zip(geometry, after["own"], strict=True):
            assert inside(after["points"].astype(np.float64), box).sum() == own


def test_later_object_takes_the_place_of_one_that_collided():
    boxes = np.array([[x, 0, 0, 2, 2, 1, 0.0] for x in (0, 1.5, 2.5, 10, 11)])
    assert without_collisions(boxes, boxes[3:4] + np.eye(7)[0] / 2).tolist() == [0, 2]
    assert without_collisions(boxes[:0], boxes).tolist() == []


def test_number_of_each_label_is_drawn():
    sample = step(count={1: 3, "2": 2})
    _, parameters, _ = drawn(sample)
    kinds = sample.objects.rows("kind", parameters)
    assert kinds.tolist() == [1, 1, 1, 2, 2] and len(set(parameters.tolist())) == 5
    assert len(drawn(step(count=10_000))[1]) == len(sample.objects)


def test_points_of_another_sensor_are_inserted_in_its_frame():
    tilted = Scene(points=Points("points", to_ego="to_ego"), boxes=SCENE.boxes)
    _, one, after = drawn(step(count=12))
    _, two, moved = drawn(step(Frames(to_ego=True), count=12, scene=tilted), source=Frames(to_ego=True))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(moved["boxes"], after["boxes"])
    ego = moved["points"][:, :3] @ pose()[:3, :3].T + pose()[:3, 3]
    np.testing.assert_allclose(ego, after["points"][:, :3], atol=1e-4)


def masked(frame, boxes=12, points=700):
    """Returns a frame with masks instead of ragged arrays, in mixed order."""
    found = {}
    for name, size in (("points", points), ("boxes", boxes), ("kind", boxes), ("own", boxes)):
        found[name] = np.zeros((size, *frame[name].shape[1:]), frame[name].dtype)
        found[name][1 : 1 + len(frame[name])] = frame[name]
    for name, size in (("points", points), ("boxes", boxes)):
        found[f"{name}_valid"] = (np.arange(size) > 0) & (np.arange(size) <= len(frame[name]))
    return found


def test_longer_text_of_inserted_objects_is_not_cut_off_in_masked_arrays():
    names = np.array(["car", "pedestrian", "sign"])
    boxes = Boxes("boxes", valid="boxes_valid", others=("name",))
    scene = Scene(points=Points("points", valid="points_valid"), boxes=boxes)
    frames = [masked(Frames()[index]) for index in range(8)]
    frames = [{**frame, "name": names[frame["kind"]]} for frame in frames]
    sample = step(frames, count=20, scene=scene, label="name", overflow="count", counts="sampled")
    before = {**frames[0], "name": np.full(len(frames[0]["name"]), "car")}
    after = sample.apply(before, sample.draw(np.random.default_rng(0), before))
    assert set(after["name"][after["boxes_valid"] & ~before["boxes_valid"]]) <= set(names)
    assert "pedestrian" in after["name"].tolist() and before["name"].dtype == "<U3"


def test_masked_arrays_keep_their_lengths():
    scene = Scene(
        points=Points("points", valid="points_valid"), boxes=Boxes("boxes", valid="boxes_valid", others=("kind", "own"))
    )
    sample = step([masked(Frames()[index]) for index in range(8)], count=6, scene=scene, counts="sampled")
    plain = step(count=6)
    assert sample.objects.fingerprint() == plain.objects.fingerprint()
    frame, parameters, expected = drawn(plain)
    before = masked(frame)
    after = sample.apply(before, parameters)
    for name in ("points", "boxes", "kind", "own"):
        assert after[name].shape == before[name].shape
        valid = after["points_valid" if name == "points" else "boxes_valid"]
        np.testing.assert_array_equal(np.sort(after[name][valid], axis=0), np.sort(expected[name], axis=0))
    inserted = len(expected["boxes"]) - len(frame["boxes"])
    assert after["sampled"].tolist() == [inserted, 6 - inserted, 0] and after["sampled"].dtype == np.int32
    assert not before["boxes_valid"][after["boxes_valid"]].all()


@pytest.mark.parametrize("limit", [{"most_boxes": 7}, {"most_points": 330}])
def test_overflow_is_an_error_or_counted(limit):
    with pytest.raises(DataError, match=r"SampleObjects: object .* has no place: the example has 5 boxes and"):
        drawn(step(count=30, **limit))
    frame, parameters, after = drawn(step(count=30, overflow="count", counts="sampled", **limit))
    free = without_collisions(step().objects.geometry[parameters], frame["boxes"][:, :7].astype(float))
    inserted, collided, left_out = after["sampled"].tolist()
    assert inserted == len(after["boxes"]) - len(frame["boxes"]) and left_out > 0
    assert (collided, inserted + left_out) == (30 - len(free), len(free))
    assert len(after["boxes"]) == 7 if "most_boxes" in limit else len(after["points"]) <= 330


def test_margin_removes_points_around_inserted_boxes():
    _, _, near = drawn(step(count=12))
    _, _, wide = drawn(step(count=12, margin=1.0))
    assert len(wide["points"]) < len(near["points"]) and len(wide["boxes"]) == len(near["boxes"])


def padded(boxes=24):
    return Padded(Frames(), {"points": 900, "boxes": boxes}, {"points": "points", "boxes": ["boxes", "kind", "own"]})


def test_padded_source_is_augmented_before_its_padding():
    source = engine.augmented(padded(), [SampleObjects(4, label="kind"), Rotate()], SCENE)
    batch = Batches(source, 4, 0, True)[1].examples
    plain = Batches(padded(), 4, 0, True)[1].examples
    boxes, before = batch["mask"]["boxes"].sum(1), plain["mask"]["boxes"].sum(1)
    assert (boxes > before).all() and (boxes <= before + 4).all()
    for row in range(4):
        geometry = batch["boxes"][row, : boxes[row], :7].astype(np.float64)
        points = batch["points"][row, batch["mask"]["points"][row]]
        for box, own in zip(geometry, batch["own"][row], strict=False):
            assert abs(int(inside(points.astype(np.float64), box).sum()) - own) <= 1  # rounding at the edges
        assert not batch["boxes"][row, boxes[row] :].any()
    again = pickle.loads(pickle.dumps(source))
    assert_same(Batches(again, 4, 0, True)[1].examples, batch)
    assert "; objects " in source.fingerprint() and source.fingerprint() != padded().fingerprint()


def test_worker_processes_insert_the_same_objects():
    source = engine.augmented(padded(), [SampleObjects(4, label="kind"), Rotate()], SCENE)
    batches = Batches(source, 4, 0, True)
    with contextlib.closing(read(batches, range(3), threads=0, workers=1, prefetch=2)) as found:
        for number, batch in enumerate(found):
            assert_same(batch.examples, batches[number].examples)


def test_padding_without_space_is_an_error():
    source = engine.augmented(padded(6), [SampleObjects(4, label="kind")], SCENE)
    with pytest.raises(DataError, match=r"after augmentation, boxes have boxes .* but all are padded to 6"):
        Batches(source, 8, 0, True)[0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(count=-1), "SampleObjects: count = -1: allowed are numbers from 0"),
        (dict(count=2.5), "count = 2.5: allowed are a whole number, and a dict"),
        (dict(scene=Scene(Points("points", coordinates=2), "boxes")), "points has no z coordinate"),
        (dict(count={"car": -2}), r"count\['car'\] = -2"),
        (dict(count={"car": 2}, label=""), "count names labels, but there is no `label`"),
        (dict(count={"02": 2}), "no object has the label 02. Labels: 0, 1, 2. Did you mean"),
        (dict(least=0), "least = 0: allowed are numbers from 1"),
        (dict(overflow="cont"), "overflow = 'cont': allowed is 'error' or 'count'. Did you mean count"),
        (dict(overflow="count"), "overflow = 'count' needs `counts`"),
        (dict(scene=Scene(points="points")), "the scene has no points or no boxes"),
        (dict(scene=Scene("points", "boxes", cameras="image")), "the scene has cameras, whose images would not show"),
        (
            dict(scene=Scene(Points("points", to_ego="x", velocities=(3,)), "boxes")),
            "points with velocities in the frame",
        ),
    ],
)
def test_impossible_settings_are_one_sentence(settings, text):
    with pytest.raises(DataError, match=text):
        step(**settings)


def test_augmentation_without_objects_says_so():
    with pytest.raises(DataError, match=r"it has no objects. engine.augmented reads them; or pass `objects`"):
        SampleObjects(scene=SCENE).draw(np.random.default_rng(0), {})
