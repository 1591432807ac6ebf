"""Mixup and CutMix: images, shares, and the other example."""

import numpy as np
import pytest

import engine
from engine.augmentation import MixImages
from engine.augmentation.mix_images import MixDraw
from engine.base.errors import DataError
from engine.data.batches import Batches


def images(count: int = 40) -> engine.ArraySource:
    """Images of one color, whose label is that color."""
    labels = np.arange(count, dtype=np.int32)
    return engine.ArraySource({"image": np.broadcast_to(labels[:, None, None], (count, 6, 8)) / 1.0, "label": labels})


class Bright(engine.ArraySource):
    """Images whose transform adds 100."""

    def transform(self, example, rng):
        return {**example, "image": example["image"] + 100}


def batch(source, number: int = 0):
    return Batches(source, 20, seed=3, shuffle=True)[number].examples


def test_mixup_averages_two_images_by_their_share():
    found = batch(engine.augmented(images(), [MixImages(mixup=0.8, cutmix=0)]))
    share = found["other_share"]
    assert share.dtype == np.float32 and ((share > 0) & (share < 1)).sum() > 15 and np.ptp(share) > 0.3
    wanted = (1 - share) * found["label"] + share * found["other_label"]
    np.testing.assert_allclose(found["image"], np.broadcast_to(wanted[:, None, None], (20, 6, 8)), rtol=1e-5)
    whole = {"image": np.full((2, 2), 200, np.uint8), "label": np.int32(1)}
    dark = engine.ArraySource({"image": np.full((1, 2, 2), 99, np.uint8), "label": np.array([7], np.int32)})
    mixed = MixImages(source=engine.augmented(dark, [MixImages()])).apply(whole, MixDraw(0, 0, 0.5, None))
    assert mixed["image"].dtype == np.uint8 and (mixed["image"] == 150).all()  # 149.5, rounded to even


def test_cutmix_counts_the_pixels_of_the_other_image():
    found = batch(engine.augmented(images(), [MixImages(mixup=0, cutmix=1)]))
    different = found["label"] != found["other_label"]
    for image, label, other, share in zip(
        *(found[name][different] for name in ("image", "label", "other_label", "other_share")), strict=True
    ):
        assert set(np.unique(image)) <= {label, other}
        assert share == np.float32((image == other).mean())
    assert different.sum() > 10 and np.ptp(found["other_share"]) > 0.3


def test_examples_depend_on_their_position_only():
    """So accumulated microbatches, more processes and a resume give the same images."""
    source = engine.augmented(images(), [MixImages()])
    whole, parts = batch(source), [Batches(source, 5, seed=3, shuffle=True)[n].examples for n in range(4)]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
    assert not np.array_equal(batch(source, 1)["other_label"], whole["other_label"])
    assert source[5].keys() == whole.keys() == source.shape_specs()[0].keys()
    assert source[5]["other_share"] == 0 and source[5]["label"] == source[5]["other_label"] == 5  # for evaluations


def test_examples_that_are_not_mixed_have_the_same_entries():
    found = batch(engine.augmented(images(), [MixImages(share=0.5)]))
    untouched = found["other_share"] == 0
    assert 4 <= untouched.sum() <= 16
    assert (found["image"][untouched] == found["label"][untouched, None, None]).all()


def test_the_other_image_has_the_transform_of_the_source():
    labels = np.zeros(4, np.int32)
    found = batch(engine.augmented(Bright({"image": np.ones((4, 6, 8)), "label": labels}), [MixImages()]))
    np.testing.assert_allclose(found["image"], 101)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0, "cutmix": 0}, "nothing is mixed. Give one of them"),
        ({"probability": 0.5}, "Set share, the share that is mixed"),
        ({"switch": 2}, "switch = 2: allowed are numbers from 0 to 1"),
        ({"cutmix": -1}, "cutmix = -1: allowed are numbers from 0"),
        ({"image": "picture"}, "has no entry 'picture'. It has image, label"),
        ({"image": "label"}, "label is int32. Allowed are uint8 and floating-point images"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        engine.augmented(images(), [MixImages(**settings)])
