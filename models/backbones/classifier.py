"""Trains a classifier of images on top of a backbone, which may start from pretrained weights."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import Loss, Mean, Task

from . import catalog


@dataclasses.dataclass
class Classifier(Task):
    """Classifies images of any source, with a backbone of `convoy_zoo.models.backbones.catalog`.

    Examples have `image`, `[rows, columns]` or `[rows, columns, 3]`, integers of 0..255 or floats of 0..1, and `label`.

    The model is the backbone with a new classifier, `fc` or `head` as the family names it. A checkpoint needs no
    `init.paths`: its classifier is read if it has as many classes, and the new one stays random otherwise.
    """

    backbone: str = "resnet18"
    classes: int = 10
    size: tuple[int, int] | None = None  # rows and columns to which images are resized
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the backbone: {"frozen_norm": True}

    def build(self, rngs):
        return catalog.create(self.backbone, classes=self.classes, rngs=rngs, **self.settings)

    def prepared(self, images):
        """Returns images as the checkpoints of the backbone need them, `[batch, rows, columns, 3]`."""
        x = images / np.float32(255) if jnp.issubdtype(images.dtype, jnp.integer) else images
        x = x if x.ndim == 4 else jnp.repeat(x[..., None], 3, axis=-1)
        if self.size is not None and x.shape[1:3] != tuple(self.size):
            x = jax.image.resize(x, (x.shape[0], *self.size, 3), "linear")
        mean, deviation = (np.array(values, np.float32) for values in catalog.mean_and_deviation(self.backbone))
        return ((x - mean) / deviation).astype(x.dtype)

    def loss(self, model, batch, rng):
        logits = model(self.prepared(batch["image"]), rng).astype(jnp.float32)  # [batch, classes]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        losses = cross_entropy(logits, batch["label"])
        if "other_label" in batch:  # of engine.augmentation.MixImages
            share = batch["other_share"]
            losses = (1 - share) * losses + share * cross_entropy(logits, batch["other_label"])
        return Loss.of(losses, metrics={"accuracy": Mean.of(logits.argmax(-1) == batch["label"])})

    def predict(self, model, batch):
        """Returns the probability of each class, `[batch, classes]`."""
        return {"probability": nnx.softmax(model(self.prepared(batch["image"])).astype(jnp.float32))}

    def config_json(self):
        """Returns the text of the config.json with which timm loads an exported model, `local-dir:FOLDER`."""
        mean, deviation = catalog.mean_and_deviation(self.backbone)
        origin = {"mean": mean, "std": deviation, "num_classes": self.classes}
        entries = {"architecture": self.backbone, "num_classes": self.classes, "pretrained_cfg": origin}
        return json.dumps(entries, indent=2) + "\n"
