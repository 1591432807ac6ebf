"""Draws results as PNG for trackers that show nothing but images."""

import numpy as np

from engine.metrics.results import Bins, Curve, Image, Result
from engine.observe.drawing import draw
from engine.observe.figure_files import png_bytes


def picture(value: Result) -> bytes | None:
    """Returns an image, a curve or a histogram as PNG; None for anything else."""
    if isinstance(value, Bins):
        edges, counts = np.repeat(value.edges, 2), np.concatenate([[0], np.repeat(value.counts, 2), [0]])
        value = Curve(edges, counts)
    if isinstance(value, Curve):
        value = Image(draw(value))
    return png_bytes(value) if isinstance(value, Image) else None
