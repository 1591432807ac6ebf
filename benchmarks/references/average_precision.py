"""Average precision of boxes in images, compared with pycocotools: integer boxes, tied scores, crowds and sizes."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.references.environment import Environment
from benchmarks.references.rows import Row

CLASSES = 3


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields a row for each kind of result."""
    sets = [image_set(seed) for seed in range(cases)]
    with tempfile.TemporaryDirectory(prefix="convoy-references-") as name:
        folder = Path(name)
        (folder / "inputs.json").write_text(json.dumps({"classes": CLASSES, "sets": sets}))
        environment.run(folder)
        results = json.loads((folder / "results.json").read_text())
    yield Row("sets evaluated by pycocotools", len(results), 0.0)


def image_set(seed: int) -> list[dict[str, Any]]:
    """Returns images whose boxes have corners on a coarse grid, so that overlaps, and scores, are often equal."""
    rng = np.random.default_rng(seed)
    size, step = int(rng.choice([10, 40, 200])), int(rng.choice([1, 2, 5]))
    levels = int(rng.choice([2, 5, 50]))
    images = []
    for _ in range(rng.integers(1, 6)):
        labels = [
            [int(rng.integers(CLASSES)), *_box(rng, size, step), int(rng.random() < 0.15)]
            for _ in range(rng.integers(0, 7))
        ]
        predictions = []
        for _ in range(rng.integers(0, 25)):
            near = labels[int(rng.integers(len(labels)))] if labels and rng.random() < 0.8 else None
            box = _moved(rng, near[1:5], step) if near else _box(rng, size, step)
            guess = near[0] if near and rng.random() < 0.9 else int(rng.integers(CLASSES))
            predictions.append([guess, int(rng.integers(1, levels + 1)) / levels, *box])
        # The area of a label is that of its mask, which may be smaller than its box.
        for label in labels:
            label.append((label[3] - label[1]) * (label[4] - label[2]) * float(rng.choice([1, 1, 0.5])))
        images.append({"labels": labels, "predictions": predictions})
    return images


def _box(rng: np.random.Generator, size: int, step: int) -> list[int]:
    low, sides = rng.integers(0, size, 2), rng.integers(1, size, 2)
    return [int(x) * step for x in (*low, *(low + sides))]


def _moved(rng: np.random.Generator, box: list[int], step: int) -> list[int]:
    x0, y0, x1, y1 = (np.array(box) + step * rng.integers(-2, 3, 4) * (rng.random(4) < 0.5)).tolist()
    return [x0, y0, max(x1, x0 + step), max(y1, y0 + step)]
