"""Detection of digits: the scenes, and the average precision of perfect and of useless predictions."""

import jax
import jax.numpy as jnp
import numpy as np

from convoy_zoo.models.detection import CANVAS, CELLS, Detection, scenes
from engine import metrics
from tests.merging import results


class Knows:
    """Predicts the labelled boxes in the first cells; of padding, with a low score."""

    def __init__(self, batch):
        self.batch = batch

    def __call__(self, image):
        rows, digits = self.batch["present"].shape
        heat = jnp.full((rows, CELLS), -9.0).at[:, :digits].set(jnp.where(self.batch["present"], 5.0, -5.0))
        boxes = jnp.zeros((rows, CELLS, 4)).at[:, :digits].set(self.batch["boxes"])
        logits = jnp.zeros((rows, CELLS, 10)).at[:, :digits].set(10 * jax.nn.one_hot(self.batch["label"], 10))
        return heat, boxes, logits


def test_boxes_enclose_the_ink_and_padding_has_none():
    source = scenes(20, seed=3)
    for example in (source[i] for i in range(20)):
        assert example["boxes"].min() >= 0 and example["boxes"].max() <= CANVAS
        rest = example["image"].copy()
        for x0, y0, x1, y1 in example["boxes"][example["present"]].astype(int):
            assert rest[y0:y1, x0:x1].max() > 0.5
            rest[y0:y1, x0:x1] = 0
        assert not rest.any()


def test_perfect_predictions_have_average_precision_one():
    source = scenes(30, seed=4)
    batch = {name: np.stack([source[i][name] for i in range(30)]) for name in source[0]}
    found = results(Detection().evaluate(Knows(batch), batch)["ap"], 8)
    assert set(found.values()) == {1.0}
    moved = Knows({**batch, "boxes": batch["boxes"] + 9})
    assert results(Detection().evaluate(moved, batch)["ap"])["m"] < 0.05
    assert isinstance(Detection().evaluate(moved, batch)["ap"], metrics.AveragePrecision)
