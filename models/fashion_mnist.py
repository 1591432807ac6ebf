"""Fashion-MNIST: 70,000 product photographs of 28x28 pixels (Xiao et al. 2017) and a small CNN."""

import dataclasses
import gzip
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine import ArraySource, DataError, Loss, Mean, Task

FOLDER = "/usr/share/datasets/fashion-mnist"


class Cnn(nnx.Module):
    """Two strided convolutions with batch normalisation (and therefore without bias), and two dense layers."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, width, (5, 5), strides=2, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, 2 * width, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(2 * width, rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 2 * width, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, image):
        """Returns logits `[batch, 10]` for images `[batch, 28, 28]` of 0..255."""
        x = (image[..., None].astype(self.head.kernel.dtype) / 255 - 0.286) / 0.353
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(x)


@dataclasses.dataclass
class Fashion(Task):
    """Classifies a photograph as one of ten kinds of clothing."""

    width: int = 32

    def build(self, rngs):
        return Cnn(self.width, rngs=rngs)

    def loss(self, model, batch, rng):
        logits = model(batch["image"])  # [batch, 10]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return Loss.of(losses, metrics={"accuracy": Mean.of(correct)})

    def predict(self, model, batch):
        logits = model(batch["image"])
        return {"label": jnp.argmax(logits, axis=-1), "probability": jnp.max(nnx.softmax(logits), axis=-1)}


class Photographs(ArraySource):
    """The photographs of a split, from the Debian package: `image` uint8 `[28, 28]` and `label` int32."""

    def __init__(self, split: Literal["train", "test"] = "train", folder: str = FOLDER):
        prefix = Path(folder) / {"train": "train", "test": "t10k"}[split]
        super().__init__(
            {
                "image": _idx(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
                "label": _idx(f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int32),
            }
        )


class ShiftedPhotographs(Photographs):
    """The photographs with random augmentation: mirrored, and shifted by up to two pixels."""

    def transform(self, example, rng):
        image = np.pad(example["image"], 2)
        dy, dx, mirror = rng.integers((5, 5, 2))
        image = image[dy : dy + 28, dx : dx + 28]
        return {**example, "image": image[:, ::-1] if mirror else image}


def _idx(path: str, header: int) -> np.ndarray:
    """Returns the bytes of a gzipped IDX file after its header. Raises DataError if it does not exist."""
    if not Path(path).exists():
        raise DataError(f"{path}: not found. Install the images: apt-get install dataset-fashion-mnist")
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
