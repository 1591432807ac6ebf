"""The file of Waymo's motion challenge, parsed with the fields of its proto, and what is refused."""

import io
from typing import Any

import numpy as np
import pytest

from engine.base.errors import DataError, TaskError
from engine.readers.protobuf_types import RecordType
from engine.submissions.waymo import Format

# The fields of motion_submission.proto, with the numbers that Waymo has published.
SUBMISSION = RecordType(
    "waymo.open_dataset.MotionChallengeSubmission",
    {
        "Trajectory": "repeated float center_x = 2; repeated float center_y = 3",
        "ScoredTrajectory": "Trajectory trajectory = 1; float confidence = 2",
        "SingleObjectPrediction": "int32 object_id = 1; repeated ScoredTrajectory trajectories = 2",
        "PredictionSet": "repeated SingleObjectPrediction predictions = 1",
        "ChallengeScenarioPredictions": "string scenario_id = 1; oneof PredictionSet single_predictions = 2",
        "MotionChallengeSubmission": "string account_name = 3; string unique_method_name = 4; "
        "int32 submission_type = 2; bool uses_lidar_data = 9; bool uses_camera_data = 10; "
        "bool uses_public_model_pretraining = 11; string num_model_parameters = 12; "
        "repeated ChallengeScenarioPredictions scenario_predictions = 1",
    },
)
ORIGIN = np.array([400.25, -70.5])


def prediction(**changes) -> dict[str, Any]:
    futures = np.arange(3 * 2 * 80 * 2, dtype=np.float32).reshape(3, 2, 80, 2)
    return {"trajectories": futures, "probability": np.array([[0.25, 0.5], [2, 0], [1, 1]], np.float32), **changes}


def example(**changes) -> dict[str, Any]:
    about = {"account_name": "a@b.org", "method_name": "latent queries", "model_parameters": "2M"}
    tracks = {"track_id": np.array([7, 40_000, -1]), "tracks_to_predict": np.int32(2)}
    return {"scenario_id": "5f82", "origin": ORIGIN, **tracks, **about, **changes}


def written(*pairs) -> bytes:
    file = io.BytesIO()
    submission = Format(file)
    for one, other in pairs:
        submission.add(one, other)
    submission.finish()
    return file.getvalue()


def test_the_message_has_the_predictions():
    found = SUBMISSION.parse(written((prediction(), example()), (prediction(), example(scenario_id="6a"))))
    assert (found.account_name, found.unique_method_name, found.num_model_parameters) == (
        "a@b.org",
        "latent queries",
        "2M",
    )
    assert found.submission_type == 1
    assert [each.scenario_id for each in found.scenario_predictions] == ["5f82", "6a"]
    first, second = found.scenario_predictions[1].single_predictions.predictions
    assert (first.object_id, second.object_id) == (7, 40_000)
    assert [each.confidence for each in first.trajectories] == [0.5, 0.25]
    assert [each.confidence for each in second.trajectories] == [2, 0]
    wanted = prediction()["trajectories"][0, 1, 4::5] + ORIGIN  # 0.5, 1, ... 8 s from now
    assert list(first.trajectories[0].trajectory.center_x) == wanted[:, 0].tolist()
    assert list(first.trajectories[0].trajectory.center_y) == wanted[:, 1].tolist()


def test_what_the_model_does_not_use_is_written_and_not_left_to_a_default():
    data = written((prediction(), example()))
    assert all(bytes([number << 3, 0]) in data for number in (9, 10, 11))


def test_predictions_at_two_per_second_are_written_as_they_are():
    futures = prediction()["trajectories"][:, :, 4::5]
    assert written((prediction(trajectories=futures), example())) == written((prediction(), example()))


def test_only_the_six_most_probable_modes_are_written():
    changes = {"trajectories": np.zeros((3, 8, 16, 2)), "probability": np.tile(np.arange(8.0), (3, 1))}
    found = SUBMISSION.parse(written((prediction(**changes), example())))
    track = found.scenario_predictions[0].single_predictions.predictions[0]
    assert [each.confidence for each in track.trajectories] == [7, 6, 5, 4, 3, 2]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"trajectories": np.zeros((3, 2, 60, 2))}, r"trajectories \[3, 2, 60, 2\], .* Allowed: .*80 or 16, 2\]"),
        ({"trajectories": np.full((3, 2, 16, 2), np.inf)}, "scenario 5f82, track 7: a predicted future is not finite"),
    ],
)
def test_wrong_predictions_are_errors(changes, match):
    with pytest.raises(TaskError, match=match):
        written((prediction(**changes), example()))


def test_wrong_examples_are_errors():
    with pytest.raises(DataError, match="scenario 5f82: it is in the dataset twice"):
        written((prediction(), example()), (prediction(), example()))
    with pytest.raises(DataError, match=r"has 2 of its 6 tracks to predict, .* --data\.targets=8"):
        written((prediction(), example(tracks_to_predict=np.int32(6))))
    with pytest.raises(DataError, match="scenario 6a: its account, method or number of parameters differs"):
        written((prediction(), example()), (prediction(), example(scenario_id="6a", method_name="other")))
