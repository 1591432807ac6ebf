"""More models of meshes_test.py, of public datasets, and all of them with those of mesh_subjects.py."""

import functools
from typing import Any

import numpy as np

from convoy_zoo.models.backbones.classifier import Classifier
from convoy_zoo.models.decoder import LanguageModel
from convoy_zoo.models.street.kitti import CLASSES as KITTI
from convoy_zoo.models.street.kitti import KittiDetection
from convoy_zoo.models.street.masked_views import MaskedViews
from convoy_zoo.models.street.nuscenes import CLASSES as NUSCENES
from convoy_zoo.models.street.nuscenes_cameras import NuScenesCameras
from convoy_zoo.models.traffic.motion import MotionForecast
from convoy_zoo.models.traffic.motion_examples import AGENT_FEATURES, LINE_FEATURES
from tests.models import mesh_subjects
from tests.models.mesh_subjects import SWITCHES, VOCABULARY, Subject, only, packed

STEPS = 20  # of the future
SPACE: dict[str, Any] = {"lower": (-4.0, -4.0, -3.0), "upper": (4.0, 4.0, 5.0), "cells": (8, 8), "width": 8}


def motion(rows: int, seed: int) -> dict[str, Any]:
    """Three agents and four polylines around each of two targets, of which one may be padding."""
    rng = np.random.default_rng(seed)
    targets = (rows, 2)
    points = {"agents": (3, 4, AGENT_FEATURES), "lines": (4, 5, LINE_FEATURES)}
    found = {name: rng.normal(size=(*targets, *shape)).astype(np.float32) for name, shape in points.items()}
    known = {f"{name}_valid": rng.random(x.shape[:-1]) < 0.8 for name, x in found.items()}
    known["agents_valid"][:, :, 0] = True
    return {
        **found,
        **known,
        "target": rng.random(targets) < [1, 0.6],
        "velocity": rng.uniform(-5, 5, (*targets, 2)).astype(np.float32),
        "future": rng.normal(0, 1, (*targets, STEPS, 2)).cumsum(2).astype(np.float32),
        "future_valid": rng.random((*targets, STEPS)) < 0.8,
    }


def clouds(rows: int, seed: int) -> dict[str, Any]:
    """Points with an age around two objects of each sweep, one of which may be padding."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-3, 3, (rows, 2, 2)), rng.uniform(0.5, 1.5, (rows, 2, 7))], axis=-1)
    points = np.repeat(boxes[..., :5], 16, axis=1) + rng.normal(0, 0.5, (rows, 32, 5))
    return {
        "points": points.astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "label": rng.integers(0, 3, (rows, 2), np.int32),
        "mask": {"points": rng.random((rows, 32)) < 0.9, "objects": rng.random((rows, 2)) < [1, 0.5]},
    }


def camera_drives(rows: int, seed: int, times: int = 2) -> dict[str, Any]:
    """Windows of two cameras that look ahead and back from 1.5 m above the ground, and three boxes in each frame."""
    rng = np.random.default_rng(seed)
    frames = (rows, times)
    poses = np.zeros((*frames, 2, 4, 4), np.float32)
    poses[..., :3, :3] = [[[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [[0, 0, -1], [1, 0, 0], [0, -1, 0]]]
    poses[..., 2, 3], poses[..., 3, 3] = 1.5, 1
    boxes = rng.uniform(-3.5, 3.5, (*frames, 3, 9)).astype(np.float32)
    boxes[..., 3:6] = rng.uniform(0.5, 2, boxes[..., 3:6].shape)
    return {
        "images": rng.integers(0, 256, (*frames, 2, 16, 32, 3), np.uint8),
        "intrinsics": np.broadcast_to(
            np.array([[16, 0, 15.5], [0, 16, 5.5], [0, 0, 1]], np.float32), (*frames, 2, 3, 3)
        ),
        "poses": poses,
        "pose": rng.uniform(-1, 1, (*frames, 3)).astype(np.float32),
        "boxes": boxes,
        "label": rng.integers(0, 10, (*frames, 3), np.int32),
        "attribute": np.zeros((*frames, 3), np.int32),
        "mask": {"objects": np.arange(3) < rng.integers(1, 4, (*frames, 1))},
        "sequence": {"starts": rng.random(rows) < 0.5, "valid": np.arange(times) < rng.integers(1, 3, (rows, 1))},
    }


def small_views(rows: int, seed: int) -> dict[str, Any]:
    """Noise of two cameras."""
    found = camera_drives(rows, seed + 50, times=1)  # rounding changes the sign of no rectified value
    return {name: np.ascontiguousarray(found[name][:, 0]) for name in ("images", "intrinsics")}


SUBJECTS = {
    **mesh_subjects.SUBJECTS,
    "resnet": Subject(
        lambda: Classifier("resnet18", settings={"depth": (1,), "width": 4, "stem": 4, "bottleneck": True}),
        functools.partial(mesh_subjects.images, 16, True),
        without=only("data 3 x fsdp 2, 6 devices"),
        tolerance=1e-4,  # rounding changes the sign of a rectified value
    ),
    "imported-vit": Subject(
        lambda: Classifier(
            "vit_small_patch14_reg4_dinov2",
            settings={
                "width": 32,
                "heads": 4,
                "depth": 2,
                "patch": 4,
                "size": (16, 16),
                "layer_scale": 0.5,
                "drop_path": 0.5,
            },
        ),
        functools.partial(mesh_subjects.images, 16, True),
        without=only("fsdp 2 x tensor 4"),
        tolerance=1e-3,  # the gradient of the bias of keys is 0 but for rounding
    ),
    "motion": Subject(
        lambda: MotionForecast(steps=STEPS, modes=2, width=16, heads=4, latents=3, encoder=0, decoder=1),
        functools.partial(motion, 8),
        rows=8,
        without=only("fsdp 2 x tensor 4"),
        learning_rate=1e-3,
    ),
    "kitti-lidar": Subject(
        lambda: KittiDetection(groups=(KITTI,), inputs=5, capacity=40, **SPACE),
        functools.partial(clouds, 8),
        rows=8,
        without=only("data 8"),
        learning_rate=1e-3,
    ),
    "nuscenes-cameras": Subject(
        lambda: NuScenesCameras(groups=(NUSCENES,), memory=4, rows=8, **SPACE),
        functools.partial(camera_drives, 8),
        rows=8,
        without=only("data 8"),
        tolerance=SWITCHES,
        learning_rate=1e-3,
    ),
    # The form of Qwen 3: normalised queries and keys, and heads that are wider than the model.
    "qwen": Subject(
        lambda: LanguageModel(
            VOCABULARY, 16, 32, depth=2, heads=4, kv_heads=4, head_dim=8, qk_norm=True, rope_theta=1e6, tied=True
        ),
        packed,
        without=only("fsdp 2 x tensor 4"),
    ),
    "masked-views": Subject(
        lambda: MaskedViews(width=8, share=0.5, block=(2, 2)),
        functools.partial(small_views, 8),
        rows=8,
        without=only("data 8"),
    ),
}
