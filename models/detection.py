"""Detection of handwritten digits on a canvas: a small convolutional head that predicts one box for each cell."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import ArraySource, Loss, Task, metrics

from .digits import scans

CANVAS, CELL = 32, 4  # pixels
CELLS = (CANVAS // CELL) ** 2


class Detector(nnx.Module):
    """Convolutions with a stride of 4 in all, and a linear head for each cell."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        sizes = ((1, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 2 * width, 1))
        self.layers = nnx.List([nnx.Conv(a, b, (3, 3), strides=stride, rngs=rngs) for a, b, stride in sizes])
        self.head = nnx.Linear(2 * width, 15, rngs=rngs)

    def __call__(self, image):
        """Returns heat logits `[batch, cells]`, boxes `[batch, cells, 4]` in pixels and class logits `[..., 10]`."""
        x = image[..., None]
        for layer in self.layers:
            x = nnx.relu(layer(x))
        out = self.head(x).reshape(image.shape[0], CELLS, 15)
        y, x = jnp.divmod(jnp.arange(CELLS), CANVAS // CELL)
        centres = CELL * (jnp.stack([x, y, x, y], axis=-1) + 0.5)
        return out[..., 0], centres + CELL * out[..., 1:5], out[..., 5:]


@dataclasses.dataclass
class Detection(Task):
    """Finds digits as boxes (x0, y0, x1, y1) with a class."""

    width: int = 16
    full_precision = ("boxes",)

    def build(self, rngs):
        return Detector(self.width, rngs=rngs)

    def loss(self, model, batch, rng):
        heat, boxes, logits = model(batch["image"])
        present = batch["present"]
        cell = (batch["boxes"][..., :2] + batch["boxes"][..., 2:]) / 2 // CELL  # cell of the centre of a digit
        cell = (cell[..., 1] * (CANVAS // CELL) + cell[..., 0]).astype(jnp.int32)  # [batch, digits]
        target = jnp.where(present[..., None], jax.nn.one_hot(cell, CELLS), 0).max(axis=1)  # [batch, cells]
        at = cell[..., None]
        error = jnp.abs(jnp.take_along_axis(boxes, at, axis=1) - batch["boxes"]) / CELL
        losses = optax.softmax_cross_entropy_with_integer_labels(
            jnp.take_along_axis(logits, at, axis=1), batch["label"]
        )
        return Loss.sum(
            heat=20.0 * Loss.of(optax.sigmoid_binary_cross_entropy(heat, target)),
            box=Loss.of(error, present),
            label=Loss.of(losses, present),
        )

    def evaluate(self, model, batch):
        heat, boxes, logits = model(batch["image"])
        ap = metrics.AveragePrecision.of(
            boxes, heat, logits.argmax(-1), batch["boxes"], batch["label"], batch["present"], classes=10, match="iou"
        )
        return {"ap": ap}

    def predict(self, model, batch):
        heat, boxes, logits = model(batch["image"])  # [batch, cells], [batch, cells, 4], [batch, cells, 10]
        return {"score": nnx.sigmoid(heat), "box": boxes, "label": logits.argmax(-1)}


def scenes(count: int = 2000, seed: int = 0, split: Literal["train", "test"] = "train") -> ArraySource:
    """Returns canvases of up to 4 digits of a split: `image`, and padded `boxes`, `label` and `present`, `[4, ...]`."""
    digits, rng = scans(split), np.random.default_rng(seed)
    image, boxes = np.zeros((count, CANVAS, CANVAS), np.float32), np.zeros((count, 4, 4), np.float32)
    label, present = np.zeros((count, 4), np.int32), rng.random((count, 4)) < 0.7
    for n, k in np.argwhere(present):  # a digit of 8x8 pixels in each quarter
        x, y = 16 * (k % 2), 16 * (k // 2)
        x, y = x + rng.integers(9), y + rng.integers(9)
        digit = digits[int(rng.integers(len(digits)))]
        image[n, y : y + 8, x : x + 8] = digit["image"]
        boxes[n, k], label[n, k] = (x, y, x + 8, y + 8), digit["label"]
    return ArraySource({"image": image, "boxes": boxes, "label": label, "present": present})
