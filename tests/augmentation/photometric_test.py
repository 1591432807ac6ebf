import numpy as np
import pytest

from engine.augmentation import Camera, Photometric, Scene
from engine.augmentation.colors import brighten, change_contrast, saturate, shift_hue
from engine.augmentation.photometric import PhotometricDraw
from engine.base.errors import DataError
from tests.augmentation.scenes import SCENE, example, window

STEP = Photometric(0.4, 0.5, 0.6, 0.2, scene=SCENE)


def draw(step, seed=0, found=None):
    return step.draw(np.random.default_rng(seed), example() if found is None else found)


def reference(image, parameters, number=0):
    """Returns a changed image, floating-point from 0 to 1, with each change of the whole image in float64."""
    x = np.moveaxis(image / 255, -1, 0)
    for function, factor in zip((brighten, change_contrast, saturate, shift_hue), parameters, strict=False):
        function(x, factor[number])
    return np.moveaxis(x, 0, -1)


def test_uint8_is_rounded_once_after_the_last_change():
    parameters = draw(STEP)
    after = STEP.apply(example(height=40), parameters)["images"]
    assert after.dtype == np.uint8
    for old, new in zip(example(height=40)["images"], after, strict=True):
        expected = reference(old, parameters) * 255
        assert np.abs(new - expected).max() <= 0.5 + 1e-3
        assert np.abs(new.astype(float) - old).mean() > 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_images_keep_their_dtype(dtype):
    image = (example()["images"] / 255).astype(dtype)
    after = STEP.apply({"images": image}, draw(STEP))["images"]
    assert after.dtype == dtype
    np.testing.assert_allclose(after[0], reference(image[0] * 255, draw(STEP)), atol=1e-5)


def test_cameras_share_a_draw_or_have_their_own():
    one, each = draw(STEP), draw(own := Photometric(each_camera=True, scene=SCENE))
    assert one.hue.shape == (1,) and each.hue.shape == (2,) and each.hue[0] != each.hue[1]
    same = {"images": np.repeat(example()["images"][:1], 2, 0)}
    assert np.array_equal(*STEP.apply(same, one)["images"])
    assert not np.array_equal(*own.apply(same, each)["images"])
    several = Scene(cameras=["rear", Camera("images", stacked=True)])
    three = Photometric(each_camera=True, scene=several)
    found = {"rear": same["images"][0], **same}
    after = three.apply(found, parameters := draw(three, found=found))
    np.testing.assert_allclose(after["images"][1] / 255, reference(found["images"][1], parameters, 2), atol=0.003)


@pytest.mark.parametrize("each", [False, True])
def test_window_has_one_draw(each):
    step = Photometric(each_camera=each, scene=SCENE)
    together = step.apply(window(3), parameters := draw(step, found=window(3)))["images"]
    for number in range(3):
        np.testing.assert_array_equal(together[number], step.apply(example(number), parameters)["images"])


def test_noise_has_its_standard_deviation_and_depends_on_the_parameters_only():
    step = Photometric(0, 0, 0, 0, noise=0.1, scene=Scene(cameras="image"))
    grey = {"image": np.full((60, 80, 3), 0.5, np.float32)}
    parameters = draw(step, found=grey)
    after = step.apply(grey, parameters)["image"]
    assert 0 < parameters.noise[0] <= 0.1
    assert (after - 0.5).std() == pytest.approx(parameters.noise[0], rel=0.03)
    np.testing.assert_array_equal(step.apply(grey, parameters)["image"], after)
    assert (grey["image"] == 0.5).all()


def test_draws_are_within_their_settings():
    one = example()
    found = [draw(STEP, seed, one) for seed in range(300)]
    for name, center, most in (("brightness", 1, 0.4), ("contrast", 1, 0.5), ("saturation", 1, 0.6), ("hue", 0, 0.2)):
        values = np.concatenate([getattr(one, name) for one in found]) - center
        assert -most <= values.min() < -0.9 * most and 0.9 * most < values.max() <= most


def test_nothing_is_changed_without_settings():
    step = Photometric(0, 0, 0, 0, scene=SCENE)
    np.testing.assert_array_equal(step.apply(example(), draw(step))["images"], example()["images"])
    assert isinstance(draw(step), PhotometricDraw)


@pytest.mark.parametrize("name", ["brightness", "hue", "noise"])
def test_impossible_settings_are_one_sentence(name):
    with pytest.raises(DataError, match=f"Photometric: {name} = 1.5: allowed are numbers from 0 to"):
        Photometric(**{name: 1.5})  # pyright: ignore[reportArgumentType]
