"""Average precision of boxes in images, compared with pycocotools: integer boxes, tied scores, crowds and sizes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.exchange import evaluated, largest_difference
from benchmarks.references.rows import Row
from engine import metrics

type Images = list[dict[str, Any]]
type Pairs = list[tuple[float, float]]
"""Results of the engine and of pycocotools."""

CLASSES = ("car", "bike", "cone")
TOLERANCE = 1e-12  # pycocotools adds 2**-52 to the divisor of a precision, and numpy sums in another order
CROWDED = 20  # each such set has images with more than 100 predictions of a class


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of result."""
    sets = [image_set(seed) for seed in range(cases)]
    wanted = evaluated(environment, {"classes": len(CLASSES), "sets": sets})
    parts: dict[str, Pairs] = {}
    for images, result in zip(sets, wanted, strict=True):
        for item, pairs in compared(engine_results(images), result).items():
            parts.setdefault(item, []).extend(pairs)
    for item, pairs in parts.items():
        yield Row(item, len(sets), largest_difference(pairs), TOLERANCE)


def engine_results(images: Images) -> dict[str, Any]:
    """Returns the results of the engine, nested by name."""
    arguments = padded_arrays(images)
    areas = arguments.pop("areas")
    found = metrics.AveragePrecision.of(**arguments, classes=CLASSES, match="iou")
    metric: Any = found.by_size(areas=areas).with_recall()
    with np.errstate(divide="ignore", invalid="ignore"):
        return metric.compute()


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Pairs]:
    """Returns item -> pairs of the numbers of the engine and of pycocotools."""
    ap = np.array(wanted["ap"])  # [thresholds, classes, sizes]
    ap[ap < 0] = np.nan
    summary = {name: np.nan if value < 0 else value for name, value in wanted["summary"].items()}
    sizes = ("small", "medium", "large")
    limits = np.linspace(0.5, 0.95, 10)
    return {
        "AP over 10 thresholds, tied scores and overlaps": [(found[""], summary["AP"])],
        "AP by threshold": [(found[f"{t:g}"], _mean(row[:, 0])) for t, row in zip(limits, ap, strict=True)],
        "AP by class": [(found[name], _mean(ap[:, c, 0])) for c, name in enumerate(CLASSES)],
        "AP of small, medium and large boxes": [(found[name][""], summary[f"AP{name[0]}"]) for name in sizes],
        "AP by size and class": [
            (found[size][name], _mean(ap[:, c, s])) for s, size in enumerate(sizes, 1) for c, name in enumerate(CLASSES)
        ],
        "AR at 1, 10 and 100 predictions": [(found["recall"][n], summary[f"AR{n}"]) for n in ("1", "10", "100")],
        "AR of small, medium and large boxes": [
            (found[name]["recall"]["100"], summary[f"AR{name[0]}"]) for name in sizes
        ],
    }


def image_set(seed: int) -> Images:
    """Returns images whose boxes have corners on a coarse grid, so that overlaps, and scores, are often equal."""
    rng = np.random.default_rng(seed)
    size, step = int(rng.choice([10, 40, 200])), int(rng.choice([1, 2, 5]))
    levels = int(rng.choice([2, 5, 50]))
    images = []
    for _ in range(2 if seed % CROWDED == 0 else rng.integers(1, 6)):
        labels: list[list[Any]] = [
            [int(rng.integers(len(CLASSES))), *_box(rng, size, step), int(rng.random() < 0.15)]
            for _ in range(rng.integers(0, 5))
        ]
        predictions: list[list[Any]] = []
        for _ in range(rng.integers(250, 400) if seed % CROWDED == 0 else rng.integers(0, 25)):
            near = labels[int(rng.integers(len(labels)))] if labels and rng.random() < 0.8 else None
            box = _moved(rng, near[1:5], step) if near else _box(rng, size, step)
            guess = near[0] if near and rng.random() < 0.9 else int(rng.integers(len(CLASSES)))
            predictions.append([guess, int(rng.integers(1, levels + 1)) / levels, *box])
        if rng.random() < 0.5:
            _add_pair(rng, labels, predictions, step, levels)
        if seed % 4 == 1:  # boxes of any float32
            for entry in [*labels, *predictions]:
                start = 1 if entry in labels else 2
                entry[start : start + 4] = _jittered(rng, entry[start : start + 4])
        # The area of a label is that of its mask, which may be smaller than its box, or at a limit between sizes.
        for label in labels:
            area = (label[3] - label[1]) * (label[4] - label[2]) * rng.choice([1, 1, 0.5])
            area = rng.choice([32**2, 96**2]) if rng.random() < 0.1 else area
            label.append(float(np.float32(area)))
        images.append({"labels": labels, "predictions": predictions})
    return images


def padded_arrays(images: Images) -> dict[str, Any]:
    """Returns the arguments of AveragePrecision.of, and "areas" for `by_size`; padded, so that little is compiled."""
    most = max(len(image["predictions"]) for image in images)
    labels, real = _padded([image["labels"] for image in images], 7, 6)
    predicted, predicted_real = _padded([image["predictions"] for image in images], 6, 27 if most <= 27 else 403)
    return {
        "predicted": predicted[..., 2:6],
        "scores": predicted[..., 1],
        "guesses": predicted[..., 0].astype(int),
        "boxes": labels[..., 1:5],
        "labels": labels[..., 0].astype(int),
        "where": real,
        "predicted_where": predicted_real,
        "ignored": labels[..., 5] > 0,
        "areas": labels[..., 6],
    }


def _padded(rows: Sequence[Sequence[Any]], width: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 `[5, most, width]`, and a mask of the real rows."""
    padded, real = np.zeros((5, most, width)), np.zeros((5, most), bool)
    for i, entries in enumerate(rows):
        padded[i, : len(entries)] = np.array(entries).reshape(len(entries), width)
        real[i, : len(entries)] = True
    return padded, real


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _add_pair(
    rng: np.random.Generator, labels: list[list[Any]], predictions: list[list[Any]], step: int, levels: int
) -> None:
    """Adds two labels, a prediction that overlaps both equally, and predictions that overlap one of them more.

    Whether these find a free label depends on the label that the first prediction takes.
    """
    guess, x, y = (int(n) for n in (rng.integers(len(CLASSES)), *rng.integers(20, 40, 2)))
    boxes = [[(x + shift) * step, y * step, (x + shift + 10) * step, (y + 10) * step] for shift in (-2, 0, 2)]
    left, middle, right = boxes
    pair = [left, right] if rng.random() < 0.5 else [right, left]
    labels.extend([guess, *box, int(rng.random() < 0.1)] for box in pair)
    predictions.append([guess, 1.0, *middle])
    for _ in range(rng.integers(1, 3)):
        predictions.append([guess, int(rng.integers(1, levels + 1)) / levels, *pair[int(rng.integers(2))]])


def _box(rng: np.random.Generator, size: int, step: int) -> list[int]:
    low, sides = rng.integers(0, size, 2), rng.integers(1, size, 2)
    return [int(x) * step for x in (*low, *(low + sides))]


def _moved(rng: np.random.Generator, box: list[int], step: int) -> list[int]:
    x0, y0, x1, y1 = (np.array(box) + step * rng.integers(-2, 3, 4) * (rng.random(4) < 0.5)).tolist()
    return [x0, y0, max(x1, x0 + step), max(y1, y0 + step)]


def _jittered(rng: np.random.Generator, box: list[int]) -> list[float]:
    return (np.array(box) + rng.uniform(-0.2, 0.2, 4)).astype(np.float32).tolist()
