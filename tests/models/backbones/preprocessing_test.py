"""Resize, cut and normalisation compared with timm, torchvision and transformers, by golden numbers.

Written by: python -m benchmarks.references --only=backbones --golden=tests/models/backbones/golden
"""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.references import backbones
from convoy_zoo.models.backbones.classifier import Classifier
from convoy_zoo.models.backbones.preprocessing import Preprocessing, of_timm
from engine import DataError, TaskError

FOLDER = Path(__file__).parent / "golden" / "backbones"


def test_images_differ_from_those_of_other_programs_by_at_most_one_of_255():
    rows = list(backbones.preprocessed(FOLDER))
    assert len(rows) == 4
    assert [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees] == []


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("resnet50", 224, 235),
        ("resnet50d", 224, 256),
        ("resnet101d", 256, 269),
        ("convnext_tiny", 224, 235),
        ("regnetx_002", 224, 256),
        ("regnety_004", 224, 232),
        ("regnety_032", 224, 235),
        ("regnety_1280", 384, 384),
        ("swin_tiny_patch4_window7_224", 224, 248),
        ("vit_base_patch16_siglip_224", 224, 248),
        ("vit_large_patch16_siglip_256", 256, 284),
        ("vit_small_patch14_dinov2", 518, 518),
    ],
)
def test_sizes_are_those_of_the_default_checkpoint_of_timm(name, size, resize):
    found = of_timm(name)
    assert (found.size, found.resize) == ((size, size), resize)


def test_a_classifier_normalises_pixels_as_the_preprocessing_does():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    settings = of_timm("vit_small_patch16_224")
    pixels = settings.pixels(image)
    np.testing.assert_allclose(
        Classifier("vit_small_patch16_224").prepared(pixels[None])[0], settings(image), rtol=1e-5, atol=1e-6
    )


def test_other_images_and_sizes_are_refused():
    with pytest.raises(DataError, match=r"found float64 \[4, 4, 3\]\. Allowed: uint8 \[rows, columns, 3\]"):
        Preprocessing()(np.zeros((4, 4, 3)))
    with pytest.raises(TaskError, match=r"resize = 200: allowed are numbers from 224, or None"):
        Preprocessing(resize=200)
