"""Cuts the features of a map, such as lanes, into polylines of at most so many points."""

import numpy as np


def cut_polylines(points: np.ndarray, counts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns polylines `[polylines, size, ...]`, which of their points exist, and the polylines of each feature.

    Args:
        points: points of all features, one after the other, `[points, ...]`.
        counts: points of each feature, int64 `[features]`.
        size: points of a polyline; the last one of a feature is filled with zeros.
    """
    pieces = -(-counts // size)
    first = np.cumsum(pieces) - pieces
    within = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = np.repeat(first, counts) + within // size
    cut = np.zeros((int(pieces.sum()), size, *points.shape[1:]), points.dtype)
    valid = np.zeros(cut.shape[:2], bool)
    cut[row, within % size], valid[row, within % size] = points, True
    return cut, valid, pieces
