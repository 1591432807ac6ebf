"""The common look of the figures: colours, units, the scale bar, the legend, the ego vehicle, and labels of boxes.

Every colour is visible on a white and on a dark background, so that a figure may be saved with a transparent one.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.base.errors import ConfigError, TaskError

PAST, TRUTH, PREDICTED, LANE, EGO = "#7d7d7d", "#2a9d3a", "#d1495b", "#9aa0a6", "#3b82c4"
MASKS = (PREDICTED, "#2a93c9", "#b07aa1", "#d08a2e")
"""Colours of masks, in order."""

SIZE = 6.0  # inches of the longer side of a figure
SMALLEST = 2.5  # inches of the shorter side
EGO_SIZE = (4.6, 1.9)  # length and width in metres of the vehicle that is drawn
LABELS = 0.45  # inches of the numbers and the unit below the axes
FONT = 6.5  # points of the labels of boxes
DECORATION = "engine.plot"  # marks what a second call on the same axes replaces
POINTS = 72.0  # points of an inch


def axes(ax: Any, title: str, equal: bool = True) -> tuple[Any, Any]:
    """Returns the figure and the axes to draw into. Raises ConfigError without matplotlib."""
    if ax is None:
        try:
            module = importlib.import_module("matplotlib.figure")
        except ModuleNotFoundError as error:
            from engine.base.extras import install_command

            raise ConfigError(
                f"engine.plot needs matplotlib, which is not installed: {install_command('plot')}."
            ) from error
        ax = module.Figure(figsize=(SIZE, SIZE), layout="constrained", label=DECORATION).subplots()
    if equal and ax.get_aspect() == "auto":
        ax.set_aspect("equal", adjustable="datalim")
    if title:
        ax.set_title(title, fontsize="medium")
    return ax.figure, ax


def decorate(ax: Any) -> None:
    """Adds units, a scale bar and a legend to a view from above; those of an earlier call on these axes are replaced.

    A figure with these axes alone also takes the shape of the scene.
    """
    offsets = importlib.import_module("matplotlib.offsetbox")
    for artist in [artist for artist in ax.get_children() if artist.get_gid() == DECORATION]:
        artist.remove()
    ax.set_xlabel("x, m", fontsize="small")
    ax.set_ylabel("y, m", fontsize="small")
    ax.tick_params(labelsize="small")
    ax.autoscale_view()
    width, height = (np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    figure = ax.figure
    if figure.get_label() == DECORATION and len(figure.axes) == 1:
        scale = SIZE / max(width, height)
        figure.set_size_inches(max(SMALLEST, width * scale), max(SMALLEST, height * scale) + 0.3)
    length = round_length(max(width, height) / 5)
    bar = importlib.import_module("mpl_toolkits.axes_grid1.anchored_artists").AnchoredSizeBar(
        ax.transData,
        length,
        f"{length:g} m",
        "lower right",
        frameon=False,
        color=ax.xaxis.label.get_color(),
        pad=0.4,
        sep=3,
    )
    for text in bar.findobj(offsets.TextArea):
        text.get_children()[0].set_fontsize("small")
    bar.set_gid(DECORATION)
    ax.add_artist(bar)
    legend(ax)


def round_length(most: float) -> float:
    """Returns the largest of 1, 2, 5, 10 ... that is at most `most`."""
    if not np.isfinite(most) or most <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(factor for factor in (1, 2, 5) if factor * power <= most * (1 + 1e-9)))


def legend(ax: Any) -> None:
    """Adds a legend below the axes, with one entry for each name, and replaces the earlier one."""
    found = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if (old := ax.get_legend()) is not None:
        old.remove()
    if found:
        inches = ax.figure.get_size_inches()[1] * ax.get_position().height
        shown = ax.legend(
            found.values(),
            found,
            loc="upper center",
            bbox_to_anchor=(0.5, -LABELS / inches),
            ncols=min(len(found), 5),
            fontsize="small",
            frameon=False,
        )
        for handle in shown.legend_handles:
            handle.set_alpha(1)


def draw_ego(ax: Any, ego: Sequence[float], label: str = "ego vehicle") -> None:
    """Draws the vehicle at (x, y, heading), filled, with its front."""
    corners = outline([*ego[:2], *EGO_SIZE, ego[2]])
    nose = (corners[0] + corners[3]) / 2
    ax.fill(*corners.T, color=EGO, alpha=0.85, linewidth=0, zorder=6, label=label)
    ax.plot(*np.stack([np.asarray(ego[:2], float), nose]).T, color="white", linewidth=1, zorder=7)


def outline(box: npt.ArrayLike) -> np.ndarray:
    """Returns the corners `[4, 2]` of a box (x, y, length, width, heading), counter-clockwise from the front left."""
    x, y, length, width, heading = np.asarray(box, float)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length / 2, width / 2]
    cos, sin = np.cos(heading), np.sin(heading)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def place_labels(ax: Any, texts: Sequence[str], boxes: np.ndarray, others: Sequence[np.ndarray], color: str) -> int:
    """Writes a label beside each box, where it covers neither another label nor a box; returns how many found no place.

    Call it when everything else is drawn. Earlier labels are the first to choose. A label away from its box has a thin
    line to it.

    Args:
        ax: the axes.
        texts: the labels.
        boxes: the box of each label, as for `outline`, `[boxes, 5]`.
        others: further boxes that no label may cover.
        color: colour of the labels.
    """
    ax.autoscale_view()
    width, height = (np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    inches = ax.figure.get_size_inches() * ax.get_position().bounds[2:]
    metres = max(width / inches[0], height / inches[1]) / POINTS  # of a point; the aspect is equal
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    taken = [(*corners.min(0), *corners.max(0)) for corners in map(outline, [*boxes, *others])]
    missing = 0
    for text, own in zip(texts, taken[: len(boxes)], strict=True):
        size = np.array([0.56 * len(text), 1.0]) * FONT * metres
        inside = (spot for spot in _spots(own, size) if left < spot[0] and spot[2] < right and low < spot[1] < high)
        place = next((spot for spot in inside if not any(_overlap(spot, other) for other in taken)), None)
        if place is None:
            missing += 1
            continue
        taken.append(place)
        middle = np.array([(place[0] + place[2]) / 2, (place[1] + place[3]) / 2])
        ax.text(*middle, text, color=color, fontsize=FONT, ha="center", va="center", zorder=8, clip_on=True)
        edge = np.clip(middle, own[:2], own[2:])
        start = np.clip(edge, place[:2], place[2:])
        if np.hypot(*(start - edge)) > size[1]:
            ax.plot(*np.stack([start, edge]).T, color=color, linewidth=0.5, alpha=0.7, zorder=5)
    return missing


def _spots(box: tuple[float, ...], size: np.ndarray) -> Iterator[tuple[float, ...]]:
    """Yields places (x0, y0, x1, y1) for a label around a box: above, below, beside, at the corners; then farther."""
    low, high = np.array(box[:2]), np.array(box[2:])
    sides = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for ring in (0.25, 1.5, 3.0, 4.5, 6.0):
        for side in sides:
            centre = (low + high) / 2 + np.array(side) * ((high - low) / 2 + ring * size[1] + size / 2)
            yield (*(centre - size / 2), *(centre + size / 2))


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def alpha(score: float, least: float) -> float:
    """Returns the opacity for a score; NaN, which matplotlib refuses, is as faint as 0."""
    return float(np.clip(np.nan_to_num(score), least, 1))


def array(values: npt.ArrayLike, name: str, last: tuple[int, ...], ndim: int) -> np.ndarray:
    """Returns an array of `ndim` dimensions that ends with the shape `last`. Raises TaskError."""
    found = np.asarray(values, float)
    if found.ndim != ndim or found.shape[-len(last) :] != last:
        wanted = ", ".join(["n"] * (ndim - len(last)) + [str(size) for size in last])
        raise TaskError(f"engine.plot: {name} has shape {list(found.shape)}, allowed is [{wanted}].")
    return found
