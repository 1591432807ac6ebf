"""Camera images with boxes, points and cells over them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.plot import style
from engine.plot.style import MASKS, PREDICTED

EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""Edges between the corners of a box: the bottom, the top, and the sides."""
NEAR = 0.1  # metres in front of a camera from which points are drawn


def camera(
    image: npt.ArrayLike,
    intrinsics: npt.ArrayLike,
    *,
    corners: npt.ArrayLike | None = None,
    points: npt.ArrayLike | None = None,
    cells: Mapping[str, npt.ArrayLike] | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws boxes, points and cells of masks over a camera image.

    Args:
        image: `[height, width, 3]` or `[height, width]`, uint8 or 0..1.
        intrinsics: `[3, 3]`, to pixels from the frame of the camera: x to the right, y down, z ahead.
        corners: predicted boxes in this frame, `[boxes, 8, 3]`: four corners of the bottom in order, then those above
            them. An edge is drawn if both of its corners are in front of the camera.
        points: `[points, 3]` in this frame, coloured by their distance, with a colour bar in metres.
        cells: name of a mask -> centres of its cells in this frame, `[cells, 3]`, in the colours of `masks`.
        ax: as for `tracks`.
        title: likewise.

    Returns:
        The figure.
    """
    figure, ax = style.axes(ax, title, equal=False)
    pixels = np.asarray(image)
    ax.imshow(pixels, cmap="gray")
    if points is not None:
        seen = _ahead(points, "points")
        at = project(seen, intrinsics)
        drawn = ax.scatter(at[:, 0], at[:, 1], c=seen[:, 2], s=2, zorder=3)
        bar = figure.colorbar(drawn, ax=ax, shrink=0.6, pad=0.02)
        bar.set_label("distance, m", fontsize="small")
        bar.ax.tick_params(labelsize="small")
    for number, (name, centres) in enumerate((cells or {}).items()):
        at = project(_ahead(centres, f"cells[{name!r}]"), intrinsics)
        ax.plot(at[:, 0], at[:, 1], ".", color=MASKS[number % len(MASKS)], markersize=2, zorder=3)
    if corners is not None:
        for box in style.array(corners, "corners", (8, 3), 3):
            at = project(box, intrinsics)
            for edge in EDGES:
                if (box[list(edge), 2] > NEAR).all():
                    ax.plot(at[list(edge), 0], at[list(edge), 1], color=PREDICTED, linewidth=1, zorder=4)
    ax.set_xlim(-0.5, pixels.shape[1] - 0.5)
    ax.set_ylim(pixels.shape[0] - 0.5, -0.5)
    ax.set_axis_off()
    return figure


def project(points: npt.ArrayLike, intrinsics: npt.ArrayLike) -> np.ndarray:
    """Returns the pixels `[points, 2]` of points `[points, 3]` in the frame of a camera with intrinsics `[3, 3]`."""
    found = np.asarray(points, float) @ np.asarray(intrinsics, float).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return found[:, :2] / found[:, 2:]


def _ahead(points: npt.ArrayLike, name: str) -> np.ndarray:
    """Returns the points in front of the camera."""
    found = style.array(points, name, (3,), 2)
    return found[found[:, 2] > NEAR]
