import numpy as np
import pytest

import engine
from engine import Padded
from engine.augmentation import Camera, Points, Scene, SensorDropout
from engine.base.errors import DataError
from engine.data.batches import Batches
from tests.augmentation.frames import Frames
from tests.augmentation.scenes import SCENE, example, window

STEP = SensorDropout(0.3, 0.5, present="present", scene=SCENE)


def test_taken_sensors_are_empty_and_others_stay():
    before = example()
    after = STEP.apply(before, np.array([True, False, False, True]))
    assert after["lidar"].shape == (0, 6) and after["lidar"].dtype == np.float32
    assert after["radar"] is before["radar"]
    assert not after["images"][1].any()
    np.testing.assert_array_equal(after["images"][0], before["images"][0])
    assert after["present"].tolist() == [False, True, True, False]
    assert before["images"][1].any()


def test_points_with_a_mask_keep_their_shape():
    scene = Scene(points=Points("lidar", valid="known"), cameras=Camera("images"))
    before = {**example(), "known": np.arange(50) < 30}
    after = SensorDropout(scene=scene).apply(before, np.array([True, True]))
    assert after["lidar"].shape == (50, 6) and not after["lidar"].any() and not after["known"].any()
    assert not after["images"].any() and "present" not in after


def test_shares_of_taken_sensors_are_the_probabilities():
    rng, found = np.random.default_rng(0), example()
    free = SensorDropout(0.3, 0.5, keep_one=False, scene=SCENE)
    shares = np.mean([free.draw(rng, found) for _ in range(2000)], axis=0)
    assert shares == pytest.approx([0.3, 0.3, 0.5, 0.5], abs=0.04)


def test_one_sensor_stays():
    rng, scene = np.random.default_rng(0), example()
    found = np.array([SensorDropout(1, 1, scene=SCENE).draw(rng, scene) for _ in range(400)])
    assert (found.sum(1) == 3).all() and (~found).mean(0) == pytest.approx([0.25] * 4, abs=0.08)
    assert SensorDropout(1, 1, keep_one=False, scene=SCENE).draw(rng, scene).all()


def test_window_loses_a_sensor_in_all_frames():
    after = STEP.apply(window(3), dropped := np.array([True, False, True, False]))
    assert STEP.draw(np.random.default_rng(0), window(3)).shape == dropped.shape
    assert after["lidar"].shape == (3, 0, 6) and not after["images"][:, 0].any()
    np.testing.assert_array_equal(after["images"][:, 1], window(3)["images"][:, 1])


def test_padding_is_restored_around_no_points():
    padded = Padded(Frames(), {"points": 400, "boxes": 8}, {"points": "points", "boxes": ["boxes", "kind", "own"]})
    source = engine.augmented(padded, [SensorDropout(0.5, keep_one=False, present="present")], {"points": "points"})
    batch = Batches(source, 16, 0, True)[0].examples
    counts = batch["mask"]["points"].sum(1)
    assert ((counts > 0) == batch["present"][:, 0]).all() and 2 < (counts == 0).sum() < 14
    assert not batch["points"][counts == 0].any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(points=2), "SensorDropout: points = 2: allowed are probabilities"),
        (dict(cameras=-0.1), "SensorDropout: cameras = -0.1"),
        (dict(present="x", probability=0.5), "present needs probability = 1"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, text):
    with pytest.raises(DataError, match=text):
        SensorDropout(**settings)
