"""Writes waymo_motion.npz: forecasts, and what the evaluation of Waymo's package computes from them.

The package has wheels for Python 3.10 only, so that this is no comparison of `benchmarks.references`. In an environment
of its own with tensorflow-cpu 2.13, numpy 1.23.5, and waymo-open-dataset-tf-2-12-0 1.6.7 (installed with --no-deps):

python tests/driving/golden/make_waymo_motion.py
"""

# pyright: reportMissingImports=false
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from waymo_open_dataset.metrics.ops import py_metrics_ops
from waymo_open_dataset.protos import motion_metrics_pb2

SCENES, AGENTS, OBJECTS, MODES = 24, 6, 3, 6  # the first objects of a scene are predicted
CONFIG = """
track_steps_per_second: 10 prediction_steps_per_second: 2 track_history_samples: 10 track_future_samples: 80
speed_lower_bound: 1.4 speed_upper_bound: 11.0 speed_scale_lower: 0.5 speed_scale_upper: 1.0
step_configurations { measurement_step: 5 lateral_miss_threshold: 1.0 longitudinal_miss_threshold: 2.0 }
step_configurations { measurement_step: 9 lateral_miss_threshold: 1.8 longitudinal_miss_threshold: 3.6 }
step_configurations { measurement_step: 15 lateral_miss_threshold: 3.0 longitudinal_miss_threshold: 6.0 }
max_predictions: 6
"""


def tracks(rng):
    """Returns true states `[scenes, agents, 91, 7]` of agents that go straight, turn, wind or stand; and a mask."""
    shape = (SCENES, AGENTS)
    speed = rng.choice([0, 0.5, 1.5, 4, 8, 12], shape)
    turn = rng.choice([0, 0, 0.4, -0.4, 1.3, -1.3, 3.0, -3.0], shape)
    heading = rng.choice([0, 0.7, 2.9, -1.6], shape)[..., None] + turn[..., None] * np.arange(-10, 81) / 80
    velocity = speed[..., None, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    aside = rng.choice([0, 0, 5, -5], shape)[..., None] * np.arange(-10, 81).clip(0) / 80
    place = np.cumsum(velocity, 2) / 10 + np.stack([-np.sin(heading), np.cos(heading)], -1) * aside[..., None]
    place += rng.uniform(-25, 25, (*shape, 1, 2))
    size = np.broadcast_to(rng.choice([0.75, 1.5, 4.5], (*shape, 1, 2)), (*shape, 91, 2))
    states = np.concatenate([np.round(place * 64) / 64, size, heading[..., None], velocity], -1).astype(np.float32)
    valid = (rng.random((*shape, 91)) < 0.85) & (rng.random((*shape, 1)) < 0.95)
    valid |= rng.random((*shape, 1)) < 0.5
    valid[:, :, 0] = True  # the operation takes another track for one that is never seen
    return np.where(valid[..., None], states, 0).astype(np.float32), valid


def forecasts(rng, states):
    """Returns forecasts `[scenes, objects, modes, 16, 2]` that are off by steps, some of which are just near enough."""
    shape = (SCENES, OBJECTS, MODES)
    now = states[:, :OBJECTS, None, 15::5]
    along, across = (rng.choice([0, 0.5, 1, 2, 3, 6, -1, -2, -3.5], shape)[..., None] for _ in range(2))
    share = np.where(rng.random(shape)[..., None] < 0.5, 1, np.arange(1, 17) / 16)
    c, s = np.cos(now[..., 4]), np.sin(now[..., 4])
    off = np.stack([c * along - s * across, s * along + c * across], -1) * share[..., None]
    return (now[..., :2] + off).astype(np.float32)


def main():
    """Writes the file."""
    rng = np.random.default_rng(0)
    states, valid = tracks(rng)
    predicted = forecasts(rng, states)
    confidences = rng.choice([0, 0.1, 0.25, 0.5], (SCENES, OBJECTS, MODES)).astype(np.float32)
    types = rng.integers(1, 4, (SCENES, AGENTS))
    indices = np.tile(np.arange(OBJECTS)[None, :, None], (SCENES, 1, 1))
    config = text_format.Parse(CONFIG, motion_metrics_pb2.MotionMetricsConfig())
    found = py_metrics_ops.motion_metrics(
        predicted[:, :, :, None],
        confidences,
        states,
        valid,
        indices.astype(np.int64),
        np.ones(indices.shape, bool),
        types.astype(np.int64),
        config.SerializeToString(),
    )
    results = np.stack([np.asarray(x) for x in found], -1)  # [types x horizons, numbers]
    path = Path(__file__).with_name("waymo_motion.npz")
    np.savez_compressed(
        path,
        states=states[:, :, 10:],
        valid=valid[:, :, 10:],
        predicted=predicted,
        confidences=confidences,
        types=types.astype(np.int8),
        results=results,
        names=np.array(found._fields),
    )


if __name__ == "__main__":
    main()
