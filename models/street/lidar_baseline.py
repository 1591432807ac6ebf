"""Detection in lidar sweeps without learning: ground removal, clusters of the rest, and the class whose size fits best.

    python -m convoy_zoo.models.street.lidar_baseline --count 200 --seed 1000000

prints the score on sweeps of `configs/lidar_sim.py`, and how difficult these are.
"""

import argparse

import numpy as np
from scipy import ndimage

from engine import metrics

from .scenes import CLASSES, EXTENT, RANGES, SIZES, SPREAD, StreetScenes, rotation

CELL = 0.4  # metres: points in cells that touch belong to one cluster
BOXES = 64


def ground_removed(points: np.ndarray) -> np.ndarray:
    """Returns the points in the square that are more than 0.3 m above a plane through the lowest points around."""
    points = points[np.abs(points[:, :2]).max(1) < EXTENT]
    low = points[np.abs(points[:, 2]) < 0.8]
    plane = np.zeros(3)
    for limit in (0.3, 0.15):  # least squares, again without the points that are far from the plane
        design = np.column_stack([low[:, :2], np.ones(len(low))])
        plane = np.linalg.lstsq(design, low[:, 2], rcond=None)[0]
        low = low[np.abs(low[:, 2] - design @ plane) < limit]
    height = points[:, 2] - np.column_stack([points[:, :2], np.ones(len(points))]) @ plane
    return points[(height > 0.3) & (height < 4.5)]


def detect(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boxes `[boxes, 9]`, scores and classes, at most BOXES, of clusters whose size fits a class."""
    points = ground_removed(points)
    side = int(2 * EXTENT / CELL)
    cell = np.floor((points[:, :2] + EXTENT) / CELL).astype(int).clip(0, side - 1)  # the sum may round up to the edge
    taken = np.zeros((side, side), bool)
    taken[tuple(cell.T)] = True
    of_cell = np.zeros(taken.shape, np.int32)
    ndimage.label(taken, np.ones((3, 3)), of_cell)
    cluster = of_cell[tuple(cell.T)]
    order = np.argsort(cluster, kind="stable")
    parts = np.split(points[order], np.searchsorted(cluster[order], np.arange(2, of_cell.max() + 1)))
    found = [fitted(part) for part in parts if len(part) >= 3]
    found.sort(key=lambda item: -item[1])
    boxes, scores, classes = (list(column) for column in zip(*found[:BOXES], strict=True)) if found else ([], [], [])
    return np.array(boxes).reshape(-1, 9), np.array(scores), np.array(classes, int)


def fitted(points: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Returns the box of a cluster, its score, and the class whose size is nearest to that of the cluster.

    The heading is the one whose box has the smallest area, which cannot tell front from back. The nearest sides of the
    box are those of the points; the box has the size of its class, since the far sides are hidden.
    """
    yaws = np.linspace(0, np.pi / 2, 18, endpoint=False)
    turned = np.einsum("pi,yij->ypj", points[:, :2], rotation(yaws))
    low, high = turned.min(1), turned.max(1)
    best = int((high - low + 0.1).prod(-1).argmin())
    yaw, low, high = yaws[best], low[best], high[best]
    length, width = high - low
    if width > length:
        yaw, low, high = yaw + np.pi / 2, np.array([low[1], -high[0]]), np.array([high[1], -low[0]])
        length, width = width, length
    top = points[:, 2].max()
    misfit = []
    for size, spread in zip(SIZES, SPREAD, strict=True):
        over = np.array([length - size[0], width - size[1], top - size[2]])
        hidden = np.where(over < 0, 0.35, 1) * over  # too large is worse than too small, as sides are hidden
        misfit.append(float(((hidden / (2 * spread + 0.1)) ** 2).sum()))
    label = int(np.argmin(misfit))
    size = SIZES[label]
    middle = (low + high) / 2
    away = np.where(middle >= 0, 1, -1) * np.maximum(size[:2] - (high - low), 0) / 2
    centre = rotation(yaw) @ (middle + away)
    score = np.exp(-misfit[label] / 2) * min(1.0, len(points) / 30)
    return np.array([*centre, size[2] / 2, *size, yaw, 0, 0]), score, label


def difficulty(examples: list[dict[str, np.ndarray]]) -> str:
    """Returns a table: objects in a sweep, the share that others hide by more than half, and points on an object."""
    lines = [f"{'class':12}  in a sweep  hidden > 50 %  points on it: 10 %, 50 %, 90 % quantile"]
    label, hits, alone = (np.concatenate([e[name] for e in examples]) for name in ("label", "hits", "alone"))
    for index, name in enumerate(CLASSES):
        of = label == index
        if not of.any():
            lines.append(f"{name:12}  {0:10.1f}")
            continue
        low, middle, high = np.quantile(hits[of], (0.1, 0.5, 0.9))
        hidden = (hits[of] < 0.5 * 0.85 * alone[of]).mean()  # 0.85: about 15 % of the rays do not return
        lines.append(
            f"{name:12}  {of.sum() / len(examples):10.1f}  {hidden:13.0%}  {low:.0f}, {middle:.0f}, {high:.0f}"
        )
    points = [len(e["points"]) for e in examples]
    return "\n".join([*lines, f"points of a sweep: {min(points)} to {max(points)}"])


def padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of several lengths as one array, and the mask of what is not padding."""
    most = max(map(len, rows))
    found = np.zeros((len(rows), most, *rows[0].shape[1:]), np.float32)
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = values
    return found, np.arange(most) < np.array([[len(values)] for values in rows])


def main() -> None:
    """Prints the difficulty of sweeps, and the score of the baseline on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1_000_000)
    args = parser.parse_args()
    source = StreetScenes(args.count, args.seed)
    examples = [source[i] for i in range(args.count)]
    print(difficulty(examples))
    found = [detect(example["points"]) for example in examples]
    (boxes, real), (scores, _), (classes, _) = [padded([f[k] for f in found]) for k in range(3)]
    (truth, where), (labels, _) = [padded([e[name] for e in examples]) for name in ("boxes", "label")]
    score = metrics.DetectionScore.of(
        boxes, scores, classes, truth, labels, where, classes=CLASSES, ranges=RANGES, predicted_where=real
    )
    result = score.compute()
    print(f"score {result['']:.3f}, mean average precision {result['ap']['']:.3f}:")
    for group in ("", *(f"{low}-{high}" for low, high in RANGES)):
        ap = (result[group] if group else result)["ap"]
        print(f"{group or 'all':6}", ", ".join(f"{name} {ap[name]:.3f}" for name in CLASSES))


if __name__ == "__main__":
    main()
