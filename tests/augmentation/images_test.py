import numpy as np
import pytest

from engine.augmentation import Camera, Scene
from engine.augmentation.images import count_cameras, image_of, single_images
from engine.base.errors import DataError
from tests.augmentation.scenes import example, window

STACKED = Camera("images", stacked=True)


def test_stacked_cameras_are_counted_one_by_one():
    both = {**example(), "rear": np.zeros((4, 4, 3), np.float32)}
    assert count_cameras(both, Scene(cameras=[STACKED, "rear"]), "test") == 3
    assert count_cameras(both, Scene(cameras=["images", "rear"]), "test") == 2


def test_images_of_a_window_have_the_number_of_their_camera():
    images = window(3)["images"]
    found = list(single_images(images, STACKED))
    assert [number for number, _ in found] == [0, 1] * 3
    np.testing.assert_array_equal(found[3][1], images[1, 1])
    assert [number for number, _ in single_images(images, Camera("images"))] == [0] * 6


@pytest.mark.parametrize(
    ("image", "found"),
    [(np.zeros((4, 4), np.uint8), r"uint8\[4, 4\]"), (np.zeros((4, 4, 3), np.int32), "int32"), ("x", "a str")],
)
def test_other_images_are_refused(image, found):
    with pytest.raises(DataError, match=f"test: image is {found}.*, allowed is .*height, width, 3"):
        image_of({"image": image}, Camera("image"), "test")
    with pytest.raises(DataError, match=r"cameras, height, width, 3\]"):
        image_of({"image": np.zeros((4, 4, 3), np.uint8)}, Camera("image", stacked=True), "test")
