"""Figures of driving scenes, in matplotlib: tracks on lanes, boxes and masks from above, overlays on camera images.

`Task.figure` returns them, or draws its own. Each function draws into `ax` if it is given, so that they combine. They
use no pyplot, so no figure stays in memory and any thread may draw. Lengths are in metres. All of them share one look:
grey for what was seen, green for what is true, red for predictions, and blue for the ego vehicle.
"""

from engine.plot.cameras import camera, project
from engine.plot.scenes import boxes, masks, tracks
from engine.plot.style import outline

<<<<<<< HEAD
__all__ = ["boxes", "camera", "masks", "outline", "project", "tracks"]
=======
import numpy as np
import numpy.typing as npt

from engine.base.errors import ConfigError, TaskError

__all__ = ["boxes", "camera", "outline", "project", "tracks"]

PAST, TRUTH, PREDICTED, LANE = "#444444", "#2a9d3a", "#d1495b", "#bbbbbb"
SIZE = 6.0  # inches of a figure
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""Edges between the corners of a box: the bottom, the top, and the sides."""
NEAR = 0.1  # metres in front of a camera from which points are drawn


def tracks(
    past: npt.ArrayLike,
    future: npt.ArrayLike | None = None,
    predicted: npt.ArrayLike | None = None,
    *,
    scores: npt.ArrayLike | None = None,
    lanes: Sequence[npt.ArrayLike] | np.ndarray = (),
    valid: npt.ArrayLike | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws the tracks of agents: the past in grey, the true future in green, predictions in red.

    Args:
        past: `[agents, steps, 2]`; positions that are not finite are left out.
        future: likewise.
        predicted: `[agents, steps, 2]`, or `[agents, modes, steps, 2]`.
        scores: scores of the modes, `[agents, modes]`, 0 to 1; a mode with a low score is faint.
        lanes: polylines `[points, 2]`, in a sequence or as one array `[lanes, points, 2]`.
        valid: agents to draw, `[agents]`; None draws all.
        ax: axes to draw into; None makes a figure.
        title: title of the axes.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax, title)
    chosen = slice(None) if valid is None else np.asarray(valid, bool)
    for lane in lanes:
        line = _array(lane, "lanes", (2,), 2)
        ax.plot(line[:, 0], line[:, 1], color=LANE, linewidth=1, zorder=1)
    history = _array(past, "past", (2,), 3)[chosen]
    for line in history:
        ax.plot(line[:, 0], line[:, 1], color=PAST, zorder=3)
    if len(history):
        ax.plot(history[:, -1, 0], history[:, -1, 1], "o", color=PAST, markersize=4, zorder=5)
    if future is not None:
        for line in _array(future, "future", (2,), 3)[chosen]:
            ax.plot(line[:, 0], line[:, 1], color=TRUTH, linewidth=2, zorder=3)
    if predicted is not None:
        modes = np.asarray(predicted, float)
        modes = _array(modes if modes.ndim == 4 else modes[:, None], "predicted", (2,), 4)[chosen]
        shares = np.ones(modes.shape[:2]) if scores is None else np.asarray(scores, float)[chosen]
        for agent, weights in zip(modes, shares, strict=True):
            for line, weight in zip(agent, weights, strict=True):
                ax.plot(line[:, 0], line[:, 1], color=PREDICTED, alpha=_alpha(weight, 0.15), zorder=4)
    return figure


def boxes(
    predicted: npt.ArrayLike,
    scores: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    *,
    points: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
    least: float = 0.0,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws boxes in the bird's-eye view: true ones in green, predictions in red with their scores.

    Args:
        predicted: `[boxes, 5]`: x and y of the centre, length, width, heading in radians.
        scores: `[boxes]`; written at each box.
        truth: as `predicted`.
        points: `[points, 2 or more]`, such as a lidar sweep.
        names: classes of the predictions, written at each box.
        least: smallest score of a prediction that is drawn.
        ax: as for `tracks`.
        title: likewise.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax, title)
    if points is not None:
        cloud = np.asarray(points, float)
        ax.plot(cloud[:, 0], cloud[:, 1], ",", color=PAST, zorder=1)
    if truth is not None:
        for box in _array(truth, "truth", (5,), 2):
            _draw_outline(ax, box, TRUTH, 1.0)
    found = _array(predicted, "predicted", (5,), 2)
    values = np.ones(len(found)) if scores is None else np.asarray(scores, float)
    for number, (box, score) in enumerate(zip(found, values, strict=True)):
        if score < least:
            continue
        _draw_outline(ax, box, PREDICTED, _alpha(score, 0.2))
        text = " ".join([*([names[number]] if names else []), *([] if scores is None else [f"{score:.2f}"])])
        ax.text(box[0], box[1], text, color=PREDICTED, fontsize=6, zorder=5, clip_on=True)
    return figure


def camera(
    image: npt.ArrayLike,
    intrinsics: npt.ArrayLike,
    *,
    corners: npt.ArrayLike | None = None,
    points: npt.ArrayLike | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Draws boxes and points over a camera image.

    Args:
        image: `[height, width, 3]` or `[height, width]`, uint8 or 0..1.
        intrinsics: `[3, 3]`, to pixels from the frame of the camera: x to the right, y down, z ahead.
        corners: boxes in this frame, `[boxes, 8, 3]`: four corners of the bottom in order, then those above them. An
            edge is drawn if both of its corners are in front of the camera.
        points: `[points, 3]` in this frame, coloured by their distance.
        ax: as for `tracks`.
        title: likewise.

    Returns:
        The figure.
    """
    figure, ax = _axes(ax, title, equal=False)
    pixels = np.asarray(image)
    ax.imshow(pixels, cmap="gray")
    if points is not None:
        seen = _array(points, "points", (3,), 2)
        seen = seen[seen[:, 2] > NEAR]
        at = project(seen, intrinsics)
        ax.scatter(at[:, 0], at[:, 1], c=seen[:, 2], s=2, zorder=3)
    if corners is not None:
        for box in _array(corners, "corners", (8, 3), 3):
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


def outline(box: npt.ArrayLike) -> np.ndarray:
    """Returns the corners `[4, 2]` of a box (x, y, length, width, heading), counter-clockwise from the front left."""
    x, y, length, width, heading = np.asarray(box, float)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length / 2, width / 2]
    cos, sin = np.cos(heading), np.sin(heading)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def _draw_outline(ax: Any, box: np.ndarray, color: str, alpha: float) -> None:
    """Draws a box, and a line from its centre to its front."""
    corners = outline(box)
    closed = np.concatenate([corners, corners[:1]])
    front = np.stack([box[:2], (corners[0] + corners[3]) / 2])
    for line in (closed, front):
        ax.plot(line[:, 0], line[:, 1], color=color, alpha=alpha, linewidth=1, zorder=4)


def _alpha(score: float, least: float) -> float:
    """Returns the opacity for a score; NaN, which matplotlib refuses, is as faint as 0."""
    return float(np.clip(np.nan_to_num(score), least, 1))


def _axes(ax: Any, title: str, equal: bool = True) -> tuple[Any, Any]:
    """Returns the figure and the axes to draw into. Raises ConfigError without matplotlib."""
    if ax is None:
        try:
            module = importlib.import_module("matplotlib.figure")
        except ModuleNotFoundError as error:
            from engine.base.extras import install_command

            raise ConfigError(
                f"engine.plot needs matplotlib, which is not installed: {install_command('plot')}."
            ) from error
        ax = module.Figure(figsize=(SIZE, SIZE), layout="constrained").subplots()
    if equal:
        ax.set_aspect("equal", adjustable="datalim")
    if title:
        ax.set_title(title)
    return ax.figure, ax


def _array(values: npt.ArrayLike, name: str, last: tuple[int, ...], ndim: int) -> np.ndarray:
    """Returns an array of `ndim` dimensions that ends with the shape `last`. Raises TaskError."""
    found = np.asarray(values, float)
    if found.ndim != ndim or found.shape[-len(last) :] != last:
        wanted = ", ".join(["n"] * (ndim - len(last)) + [str(size) for size in last])
        raise TaskError(f"engine.plot: {name} has shape {list(found.shape)}, allowed is [{wanted}].")
    return found
>>>>>>> 118f9480 (base: name the command that really installs an extra)
