"""The Task that fine-tunes a backbone: its images, its checkpoints, and its mistakes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.references.backbones import without_values
from convoy_zoo.models.backbones import catalog
from convoy_zoo.models.backbones.classifier import Classifier
from engine import TaskError, hub

TINY = {
    "resnet18": {"depth": (1,), "width": 2, "stem": 2, "bottleneck": False},
    "convnext_tiny": {"depths": (1, 1), "widths": (2, 4)},
    "regnety_004": {"depths": (1,), "widths": (4,), "group": 2, "stem": 2},
    "vit_small_patch16_224": {"width": 4, "heads": 2, "depth": 1, "patch": 4, "size": (8, 8)},
}


@pytest.mark.parametrize("name", TINY)
def test_a_checkpoint_with_other_classes_gives_all_but_the_classifier(name, tmp_path):
    """No `init.paths` is needed, and `^(fc|head)/` selects the classifier for a linear probe."""
    pretrained: Any = without_values(lambda rngs: catalog.create(name, classes=7, rngs=rngs, **TINY[name]))
    hub.save(pretrained, tmp_path / "model.safetensors")
    task = Classifier(name, classes=3, settings=TINY[name])
    model: Any = without_values(task.build)
    nnx.update(model, jax.tree.map(lambda x: x + 1, nnx.state(model)))
    message = hub.load(model, tmp_path / "model.safetensors")
    values = {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    left = {path for path, x in values.items() if x.any()}
    assert left in ({"fc/kernel", "fc/bias"}, {"head/kernel", "head/bias"}), message


def test_images_are_normalised_as_the_backbone_needs_them():
    whole = np.full((1, 2, 2, 3), (255, 0, 51), np.uint8)
    for name, mean, deviation in (
        ("resnet50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_small_patch14_dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_base_patch16_siglip_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ):
        found = Classifier(name, size=(4, 6)).prepared(jnp.asarray(whole))
        wanted = (np.array([1, 0, 0.2]) - mean) / deviation
        np.testing.assert_allclose(found, np.broadcast_to(wanted, (1, 4, 6, 3)), rtol=1e-5)
        floats = Classifier(name).prepared(jnp.asarray(whole / np.float32(255)))
        np.testing.assert_allclose(floats, np.broadcast_to(wanted, (1, 2, 2, 3)), rtol=1e-5)
    gray = Classifier("resnet50").prepared(jnp.ones((2, 4, 4)))
    assert gray.shape == (2, 4, 4, 3) and np.ptp(np.asarray(gray[..., 0])) == 0


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(TaskError, match=r"found the backbone 'resnet52'\. Allowed: .*resnet50"):
        Classifier("resnet52").build(nnx.Rngs(0))
    with pytest.raises(TaskError, match=r"convnext_tiny does not take the settings .*'width'"):
        Classifier("convnext_tiny", settings={"width": 3}).build(nnx.Rngs(0))
