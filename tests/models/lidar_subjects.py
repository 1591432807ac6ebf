"""Detectors of lidar sweeps of public datasets, as models of meshes_test.py."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from convoy_zoo.models.street.centers import CenterDetection
from convoy_zoo.models.street.kitti import CLASSES as KITTI
from convoy_zoo.models.street.kitti import KittiDetection
from convoy_zoo.models.street.nuscenes import CLASSES, NuScenesDetection
from engine import Task
from tests.models.mesh_subjects import Subject, only

SPACE: dict[str, Any] = {"lower": (-4.0, -4.0, -2.0), "upper": (4.0, 4.0, 2.0), "cells": (8, 8), "width": 8}


def clouds(rows: int, seed: int) -> dict[str, Any]:
    """Points with an age around two objects of each sweep, one of which may be padding."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-3, 3, (rows, 2, 2)), rng.uniform(0.5, 1.5, (rows, 2, 7))], axis=-1)
    points = np.repeat(boxes[..., :5], 16, axis=1) + rng.normal(0, 0.5, (rows, 32, 5))
    return {
        "points": points.astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "label": rng.integers(0, 3, (rows, 2), np.int32),
        "attribute": np.zeros((rows, 2), np.int32),
        "mask": {"points": rng.random((rows, 32)) < 0.9, "objects": rng.random((rows, 2)) < [1, 0.5]},
    }


TASKS: dict[str, Callable[[], Task]] = {
    "centers": lambda: CenterDetection(groups=(("car",), ("person", "bicycle")), capacity=40, **SPACE),
    "kitti-lidar": lambda: KittiDetection(groups=(KITTI,), inputs=5, capacity=40, **SPACE),
    "nuscenes-lidar": lambda: NuScenesDetection(groups=(CLASSES,), capacity=40, **SPACE),
}
LIDAR = {
    name: Subject(
        task,
        functools.partial(clouds, 8),
        rows=8,
        without=only("data 8"),
        learning_rate=1e-3,
    )
    for name, task in TASKS.items()
}
