"""The feature pyramid on the maps of a backbone. parity_test.py compares its results with those of torchvision."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.references.backbones import without_values
from convoy_zoo.models.backbones import catalog
from convoy_zoo.models.backbones.pyramid import FeaturePyramid
from engine import TaskError


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "regnetx_002", "swin_tiny_patch4_window7_224"])
def test_maps_of_a_backbone_become_maps_of_one_width(name):
    """Shapes only: nothing is compiled. The size of the images is odd."""

    def run(images: jax.Array) -> Any:
        backbone = catalog.create(name, rngs=nnx.Rngs(0))
        return FeaturePyramid(catalog.widths(backbone), 7, rngs=nnx.Rngs(0))(backbone.features(images))

    found = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 75, 101, 3), jnp.float32))
    assert list(found) == [4, 8, 16, 32]
    assert all(x.shape[0] == 2 and x.shape[-1] == 7 for x in found.values())
    assert all(
        abs(x.shape[1] - 75 / stride) <= 1 and abs(x.shape[2] - 101 / stride) <= 1 for stride, x in found.items()
    )


def test_a_pyramid_without_maps_is_refused():
    with pytest.raises(TaskError, match=r"widths is empty. Give the features of each stride"):
        without_values(lambda rngs: FeaturePyramid({}, rngs=rngs))
