"""More models of meshes_test.py, of public datasets, and all of them with those of mesh_subjects.py."""

import functools
from typing import Any

import numpy as np

from convoy_zoo.models.traffic.motion import MotionForecast
from convoy_zoo.models.traffic.motion_examples import AGENT_FEATURES, LINE_FEATURES
from tests.models import mesh_subjects
from tests.models.lidar_subjects import LIDAR
from tests.models.mesh_subjects import Subject, only

STEPS = 20  # of the future


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


SUBJECTS = {
    **mesh_subjects.SUBJECTS,
    **LIDAR,
    "motion": Subject(
        lambda: MotionForecast(steps=STEPS, modes=2, width=16, heads=4, latents=3, encoder=0, decoder=1),
        functools.partial(motion, 8),
        rows=8,
        without=only("fsdp 2 x tensor 4"),
        learning_rate=1e-3,
    ),
}
