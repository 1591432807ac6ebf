"""The area that two rotated boxes share, by clipping polygons: a reference for the test of collisions."""

import numpy as np

from engine.plot import outline


def corners(box):
    """Returns the four corners of a box, counter-clockwise."""
    return outline(np.array([box[0], box[1], box[3], box[4], box[6]])).tolist()


def shared_area(one, two):
    """Returns the area that two boxes share, by clipping one at each edge of the other (Sutherland and Hodgman)."""
    polygon, clip = corners(one), corners(two)
    for (ax, ay), (bx, by) in zip(clip, clip[1:] + clip[:1], strict=True):

        def side(point, ax=ax, ay=ay, bx=bx, by=by):
            return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

        kept = []
        for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if side(here) >= 0:
                kept.append(here)
            if side(here) * side(there) < 0:
                t = side(here) / (side(here) - side(there))
                kept.append([a + t * (b - a) for a, b in zip(here, there, strict=True)])
        polygon = kept
        if not polygon:
            return 0.0
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2
