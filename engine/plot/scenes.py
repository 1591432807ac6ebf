"""Scenes from above: tracks of agents on lanes, boxes over a lidar sweep, and masks of cells. Lengths are in metres."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.base.errors import TaskError
from engine.plot import style
from engine.plot.style import LANE, MASKS, PAST, PREDICTED, TRUTH, outline

CHOSEN = 0.5  # probability from which a cell belongs to a mask


def tracks(
    past: npt.ArrayLike,
    future: npt.ArrayLike | None = None,
    predicted: npt.ArrayLike | None = None,
    *,
    scores: npt.ArrayLike | None = None,
    lanes: Sequence[npt.ArrayLike] | np.ndarray = (),
    valid: npt.ArrayLike | None = None,
    ego: Sequence[float] | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws the tracks of agents: the past in grey, the true future in green, predictions in red.

    Args:
        past: `[agents, steps, 2]`; positions that are not finite are left out.
        future: the true future, likewise.
        predicted: predicted futures, `[agents, steps, 2]`, or `[agents, modes, steps, 2]`.
        scores: scores of the modes, `[agents, modes]`, 0 to 1; a mode with a low score is faint.
        lanes: polylines `[points, 2]`, in a sequence or as one array `[lanes, points, 2]`.
        valid: agents to draw, `[agents]`; None draws all.
        ego: (x, y, heading in radians) of the ego vehicle; None draws none.
        ax: axes to draw into; None makes a figure.
        title: title of the axes.

    Returns:
        The figure.
    """
    figure, ax = style.axes(ax, title)
    chosen = slice(None) if valid is None else np.asarray(valid, bool)
    for lane in lanes:
        line = style.array(lane, "lanes", (2,), 2)
        ax.plot(line[:, 0], line[:, 1], color=LANE, linewidth=0.8, alpha=0.8, zorder=1, label="lane")
    history = style.array(past, "past", (2,), 3)[chosen]
    for line in history:
        ax.plot(line[:, 0], line[:, 1], color=PAST, zorder=3, label="past")
    if len(history):
        ax.plot(history[:, -1, 0], history[:, -1, 1], "o", color=PAST, markersize=4, zorder=5, label="now")
    if predicted is not None:
        modes = np.asarray(predicted, float)
        modes = style.array(modes if modes.ndim == 4 else modes[:, None], "predicted", (2,), 4)[chosen]
        shares = np.ones(modes.shape[:2]) if scores is None else np.asarray(scores, float)[chosen]
        for agent, weights in zip(modes, shares, strict=True):
            for line, weight in zip(agent, weights, strict=True):
                shade = style.alpha(weight, 0.15)
                ax.plot(*line.T, color=PREDICTED, alpha=shade, linewidth=1.2, zorder=4, label="prediction")
    if future is not None:
        for line in style.array(future, "future", (2,), 3)[chosen]:
            ax.plot(line[:, 0], line[:, 1], color=TRUTH, linewidth=3.5, alpha=0.8, zorder=3.5, label="true future")
    if ego is not None:
        style.draw_ego(ax, ego)
    style.decorate(ax)
    return figure


def boxes(
    predicted: npt.ArrayLike,
    scores: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    *,
    points: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
    least: float = 0.0,
    ego: Sequence[float] | None = (0.0, 0.0, 0.0),
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws boxes in the bird's-eye view: true ones in green, predictions in red with their scores.

    Labels do not cover each other or a box. If there is no room for some, a note says how many.

    Args:
        predicted: predicted boxes, `[boxes, 5]`: x and y of the centre, length, width, heading in radians.
        scores: scores of the predictions, `[boxes]`, written at each box.
        truth: true boxes, as `predicted`.
        points: `[points, 2 or more]`, such as a lidar sweep.
        names: classes of the predictions, written at each box.
        least: smallest score of a prediction that is drawn.
        ego: (x, y, heading in radians) of the ego vehicle, by default the origin; None draws none.
        ax: as for `tracks`.
        title: likewise.

    Returns:
        The figure.
    """
    figure, ax = style.axes(ax, title)
    if points is not None:
        cloud = np.asarray(points, float)
        ax.plot(cloud[:, 0], cloud[:, 1], ".", color=PAST, markersize=0.7, alpha=0.5, zorder=1)
        ax.plot([], [], ".", color=PAST, markersize=4, label="lidar")
    others = [] if truth is None else [*style.array(truth, "truth", (5,), 2)]
    for box in others:
        _draw_box(ax, box, TRUTH, 1.0, "true box")
    found = style.array(predicted, "predicted", (5,), 2)
    values = np.ones(len(found)) if scores is None else np.asarray(scores, float)
    kept = [number for number in np.argsort(-np.nan_to_num(values), kind="stable") if not values[number] < least]
    for number in kept:
        _draw_box(ax, found[number], PREDICTED, style.alpha(values[number], 0.2), "predicted box")
    if ego is not None:
        style.draw_ego(ax, ego)
        others.append(np.array([*ego[:2], *style.EGO_SIZE, ego[2]]))
    style.decorate(ax)
    texts = [
        " ".join([*([names[int(number)]] if names else []), *([] if scores is None else [f"{values[number]:.2f}"])])
        for number in kept
    ]
    if any(texts):
        missing = style.place_labels(ax, texts, found[kept], others, PREDICTED)
        if missing:
            note = f"no room for the labels of {missing} of {len(kept)} boxes"
            ax.text(0.01, 0.99, note, transform=ax.transAxes, va="top", fontsize=style.FONT, zorder=8)
    return figure


def masks(
    predicted: npt.ArrayLike,
    truth: npt.ArrayLike | None = None,
    *,
    extent: Sequence[float],
    names: Sequence[str],
    ego: Sequence[float] | None = (0.0, 0.0, 0.0),
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws masks of cells from above: predictions as areas in a colour for each mask, true masks outlined in green.

    Args:
        predicted: predicted probabilities, `[rows, columns, masks]`; a cell of at least 0.5 is drawn. Rows lie along y,
            and columns along x.
        truth: true masks of this shape, 0 or 1.
        extent: x of the left edge, x of the right edge, y of the lower edge, y of the upper edge.
        names: names of the masks, for the legend.
        ego: as for `boxes`.
        ax: as for `tracks`.
        title: likewise.

    Returns:
        The figure.
    """
    found = np.asarray(predicted, float)
    if found.ndim != 3 or found.shape[-1] != len(names):
        raise TaskError(f"engine.plot: predicted has shape {list(found.shape)}, allowed is [n, n, {len(names)}].")
    figure, ax = style.axes(ax, title)
    rows, columns, _ = found.shape
    x, y = _centres(extent[:2], columns), _centres(extent[2:], rows)
    for number, name in enumerate(names):
        color = MASKS[number % len(MASKS)]
        if (found[..., number] >= CHOSEN).any():
            ax.contourf(x, y, found[..., number], [CHOSEN, np.inf], colors=color, alpha=0.6, zorder=1)
        ax.fill([], [], color=color, alpha=0.6, label=f"predicted {name}")
    if truth is not None:
        known = np.asarray(truth, float)
        for number in range(len(names)):
            if 0 < known[..., number].mean() < 1:
                ax.contour(x, y, known[..., number], [0.5], colors=TRUTH, linewidths=0.8, zorder=2)
        ax.plot([], [], color=TRUTH, linewidth=0.8, label="true masks")
    ax.set_aspect("equal", adjustable="box")  # the limits are given
    ax.set_xlim(*extent[:2])
    ax.set_ylim(*extent[2:])
    if ego is not None:
        style.draw_ego(ax, ego)
    style.decorate(ax)
    return figure


def _draw_box(ax: Any, box: np.ndarray, color: str, alpha: float, label: str) -> None:
    """Draws a box, and a line from its centre to its front."""
    corners = outline(box)
    closed = np.concatenate([corners, corners[:1]])
    front = np.stack([box[:2], (corners[0] + corners[3]) / 2])
    ax.plot(closed[:, 0], closed[:, 1], color=color, alpha=alpha, linewidth=1, zorder=4, label=label)
    ax.plot(front[:, 0], front[:, 1], color=color, alpha=alpha, linewidth=1, zorder=4)


def _centres(ends: Sequence[float], count: int) -> np.ndarray:
    """Returns the centres of `count` cells between two ends."""
    return ends[0] + (np.arange(count) + 0.5) * (ends[1] - ends[0]) / count
