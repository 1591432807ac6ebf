"""A Task that draws its predictions without matplotlib."""

import numpy as np

from engine.metrics import Image
from tests.predicting import Predict


class Draw(Predict):
    """Draws the logits of an example in its first row, and its values in the second."""

    def figure(self, example, prediction):
        logits = np.resize(prediction["scores/logits"], 16)
        return Image(np.stack([logits, example["x"]]).clip(0, 1))


class Broken(Draw):
    """Draws nothing but an error."""

    def figure(self, example, prediction):
        raise ValueError("no pen")
