"""The simulated cameras with a backbone of another program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convoy_zoo.models.street.bev import Views
from convoy_zoo.models.street.cameras import COLUMNS, ROWS, Rig
from engine import hub

SETTINGS = {"depth": (1, 1), "width": 4, "stem": 4, "bottleneck": False, "frozen_norm": True}


def test_an_imported_backbone_sees_each_patch_at_its_place(tmp_path):
    task = Views(width=8, backbone="resnet18", settings=SETTINGS)
    model: Any = task.build(nnx.Rngs(0))
    hub.save(model.backbone.net, tmp_path / "model.safetensors")
    hub.load(model, tmp_path / "model.safetensors", {"backbone/net": "", "backbone/across": None, "": None})
    rig = Rig.mounted(np.random.default_rng(0))
    intrinsics = jnp.asarray(np.stack([rig.intrinsics[:1]] * 2), jnp.float32)
    images = np.full((2, 1, ROWS, COLUMNS, 3), 128, np.uint8)
    images[1, 0, 24:32, 80:84] = 255  # the patch of row 3 and column 20
    logits = jax.jit(lambda images: model({"images": images, "intrinsics": intrinsics}))(images)
    assert logits.shape[:4] == (2, 1, ROWS // 8, COLUMNS // 4)
    changes = np.abs(logits[1, 0] - logits[0, 0]).sum(-1)
    seen = np.stack(np.nonzero(changes > changes.max() / 2), -1)
    assert np.abs(seen - (3, 20)).max() <= 1 and changes[0, 0] < 0.01 * changes.max()
