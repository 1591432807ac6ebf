"""Evaluates the sets of FOLDER/inputs.npz, and reads the files in FOLDER, with Waymo's package; writes results.json.

Imports no engine. Results of a set are rows for each type and horizon: minADE, minFDE, miss rate, overlap rate, mAP.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from waymo_open_dataset.metrics.ops import py_metrics_ops
from waymo_open_dataset.protos import motion_metrics_pb2, motion_submission_pb2, scenario_pb2

CONFIG = """
track_steps_per_second: 10 prediction_steps_per_second: 2 track_history_samples: 10 track_future_samples: 80
speed_lower_bound: 1.4 speed_upper_bound: 11.0 speed_scale_lower: 0.5 speed_scale_upper: 1.0
step_configurations { measurement_step: 5 lateral_miss_threshold: 1.0 longitudinal_miss_threshold: 2.0 }
step_configurations { measurement_step: 9 lateral_miss_threshold: 1.8 longitudinal_miss_threshold: 3.6 }
step_configurations { measurement_step: 15 lateral_miss_threshold: 3.0 longitudinal_miss_threshold: 6.0 }
max_predictions: 6
"""
NUMBERS = ("min_ade", "min_fde", "miss_rate", "overlap_rate", "mean_average_precision")
STATE = ("center_x", "center_y", "center_z", "length", "width", "height", "heading", "velocity_x", "velocity_y")


def evaluate(states, valid, predicted, confidences, types):
    """Returns NUMBERS of each type and horizon; the first objects of a scene are those with predictions."""
    config = text_format.Parse(CONFIG, motion_metrics_pb2.MotionMetricsConfig())
    scenes, objects = predicted.shape[:2]
    indices = np.tile(np.arange(objects, dtype=np.int64)[None, :, None], (scenes, 1, 1))
    found = py_metrics_ops.motion_metrics(
        predicted[:, :, :, None],
        confidences,
        states,
        valid,
        indices,
        np.ones(indices.shape, bool),
        types.astype(np.int64),
        config.SerializeToString(),
    )
    return np.stack([np.asarray(getattr(found, name)) for name in NUMBERS], -1).tolist()


def scenario(message):
    """Returns parts of a scenario; a state of an unseen track is zero."""
    tracks = {}
    for track in message.tracks:
        rows = [[getattr(state, name) if state.valid else 0 for name in STATE] for state in track.states]
        tracks[str(track.id)] = rows
    lanes = [feature.lane for feature in message.map_features if feature.HasField("lane")]
    return {
        "scenario_id": message.scenario_id,
        "seconds": list(message.timestamps_seconds),
        "tracks": tracks,
        "types": [track.object_type for track in message.tracks],
        "tracks to predict": sorted(required.track_index for required in message.tracks_to_predict),
        "points of lanes": [[point.x, point.y, point.z] for lane in lanes for point in lane.polyline],
    }


def submission(path):
    """Returns the account, the kind and the predictions of a file of the challenge."""
    message, objects = motion_submission_pb2.MotionChallengeSubmission.FromString(path.read_bytes()), {}
    for one in message.scenario_predictions:
        objects[one.scenario_id] = {
            str(prediction.object_id): [
                [
                    trajectory.confidence,
                    np.stack([trajectory.trajectory.center_x, trajectory.trajectory.center_y], -1).tolist(),
                ]
                for trajectory in prediction.trajectories
            ]
            for prediction in one.single_predictions.predictions
        }
    return {"account_name": message.account_name, "submission_type": message.submission_type, "objects": objects}


def main(folder):
    """Reads the sets and the files in the folder and writes the results."""
    inputs = np.load(folder / "inputs.npz")
    sets = {name: inputs[name] for name in inputs.files}
    count = len(sets["states"])
    paths = sorted(map(str, folder.glob("dataset/training/*.tfrecord*")))
    records = [scenario_pb2.Scenario.FromString(x.numpy()) for path in paths for x in tf.data.TFRecordDataset(path)]
    results = {
        "sets": [evaluate(**{name: x[number] for name, x in sets.items()}) for number in range(count)],
        "scenarios": [scenario(record) for record in records],
        "submission": submission(folder / "submission.binproto"),
    }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
