import numpy as np
import pytest

from engine.augmentation import Flip, Rotate, Scale, Translate
from engine.base.errors import DataError
from tests.augmentation.scenes import SCENE, assert_close, assert_same, example

STEPS = [Rotate(60, scene=SCENE), Scale(0.8, 1.3, scene=SCENE), Flip(x=0.5, y=0.5, scene=SCENE), Translate(scene=SCENE)]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.key)
def test_inverse_restores_the_example(step):
    for seed in range(8):
        parameters = step.draw(np.random.default_rng(seed), example())
        after = step.apply(example(), parameters)
        assert_close(step.inverse(after, parameters), example())
        assert_same(step.apply(example(), parameters), after)


def test_flip_of_points_is_exact():
    step = STEPS[2]
    twice = step.apply(step.apply(example(), (True, False)), (True, False))
    for name in ("lidar", "images", "velocity", "center", "box_size"):
        np.testing.assert_array_equal(twice[name], example()[name])
    assert step.apply(before := example(), (False, False)) is before


def test_draws_are_uniform_within_their_range():
    rng = np.random.default_rng(0)
    angles = np.degrees([Rotate((-10, 30)).draw(rng, {}) for _ in range(2000)])
    assert -10 <= angles.min() < -9 and 29 < angles.max() <= 30 and abs(angles.mean() - 10) < 1
    assert np.degrees([Rotate(20).draw(rng, {}) for _ in range(500)]).min() < -19
    scales = np.array([Scale(0.9, 1.2).draw(rng, {}) for _ in range(500)])
    assert 0.9 <= scales.min() < 0.92 and 1.18 < scales.max() <= 1.2
    flips = np.mean([Flip(x=0.1, y=0.7).draw(rng, {}) for _ in range(2000)], axis=0)
    assert flips == pytest.approx([0.1, 0.7], abs=0.03)
    shifts = np.array([Translate((1, 2, 0)).draw(rng, {}) for _ in range(2000)])
    assert shifts.std(0) == pytest.approx([1, 2, 0], rel=0.1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Rotate((30, 10)), r"augmentation Rotate: degrees = \(30, 10\): allowed are two increasing numbers"),
        (lambda: Rotate(-3), "Rotate: degrees = -3"),
        (lambda: Rotate(720), "Rotate: degrees = 720"),
        (lambda: Scale(0, 1), "Scale: low = 0, high = 1: allowed are two increasing factors between 0.001"),
        (lambda: Scale(1.1, 0.9), "Scale: low"),
        (lambda: Flip(x=2), "Flip: x = 2: allowed are probabilities"),
        (lambda: Translate((1, -2, 0)), "Translate: standard_deviation"),
        (lambda: Rotate(probability=1.5), "Rotate: probability = 1.5"),
    ],
)
def test_impossible_settings_are_one_sentence(make, text):
    with pytest.raises(DataError, match=text):
        make()


def test_augmentation_without_description_says_so():
    with pytest.raises(DataError, match=r"augmentation Rotate: there is no description of the example. Pass `scene`"):
        Rotate().apply(example(), 0.1)
