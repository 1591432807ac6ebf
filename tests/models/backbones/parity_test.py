"""Models of `convoy_zoo.models.backbones` with weights, outputs and gradients of others as golden numbers.

Written by: python -m benchmarks.references --only=backbones --golden=tests/models/backbones/golden
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from benchmarks.references import backbones
from convoy_zoo.models.backbones.vit import VisionTransformer
from engine import TaskError, hub

FOLDER = Path(__file__).parent / "golden" / "backbones"


@pytest.mark.parametrize("item", list(backbones.MODELS)[: backbones.DIFFERENTIATED])
def test_outputs_and_gradients_equal_those_of_timm(item):
    """Images have another size and ratio than the positions of the checkpoint; those of the ResNet are odd."""
    rows = list(backbones.compared(FOLDER, item))
    assert len(rows) == 3
    assert [f"{row.item}: {row.largest_difference}" for row in rows if not row.agrees] == []


@pytest.mark.parametrize("item", list(backbones.MODELS)[backbones.DIFFERENTIATED : backbones.TINY])
def test_outputs_equal_those_of_other_programs(item):
    """The models are those above with other names, or simple; `benchmarks.references` compares their gradients."""
    module: Any = backbones.without_values(backbones.MODELS[item])
    hub.load(module, FOLDER / item / "model.safetensors")
    module.eval()
    with np.load(FOLDER / item / "arrays.npz") as arrays:
        outputs = nnx.jit(lambda module, images: module(images))(module, arrays["images"])
        largest = np.abs(arrays["outputs"]).max()
        np.testing.assert_allclose(outputs, arrays["outputs"], rtol=0, atol=backbones.OUTPUTS * largest)


def test_names_of_a_whole_model_of_transformers_have_a_prefix(tmp_path):
    original = load_file(FOLDER / "tiny-vit-transformers" / "model.safetensors")
    save_file({f"vit.{name}": x for name, x in original.items()}, tmp_path / "model.safetensors")
    module: Any = backbones.without_values(backbones.MODELS["tiny-vit-transformers"])
    hub.load(module, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(module.class_token[...], original["embeddings.cls_token"])


def test_a_layout_without_a_table_is_refused():
    with pytest.raises(TaskError, match=r"layout = 'torchvision'\. Allowed for this variant: timm, transformers"):
        backbones.without_values(
            lambda rngs: VisionTransformer("vit_small_patch14_dinov2", layout="torchvision", rngs=rngs)
        )


@pytest.mark.parametrize("item", list(backbones.MODELS)[: backbones.TINY])
def test_weights_are_written_as_they_were_read(item, tmp_path):
    """Only counters of batches, which no model needs, and the token of masked patches are left out."""
    original = FOLDER / item / "model.safetensors"
    module = backbones.without_values(backbones.MODELS[item])
    hub.load(module, original)
    names = hub.save(module, tmp_path / "out.safetensors", like=original)
    wanted = {
        name: x for name, x in load_file(original).items() if not name.endswith(("num_batches_tracked", "mask_token"))
    }
    found = load_file(tmp_path / "out.safetensors")
    assert names == sorted(wanted) == sorted(found)
    assert [name for name in names if found[name].tobytes() != wanted[name].tobytes()] == []
    assert [name for name in names if found[name].dtype != wanted[name].dtype] == []
