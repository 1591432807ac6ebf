"""The file of Argoverse 2's motion challenge: rows, probabilities and frames, and what is refused.

`python -m benchmarks.references --only=argoverse2_motion` loads such a file by the package av2.
"""

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.base.errors import DataError, TaskError
from engine.submissions.argoverse2 import Format

ORIGIN = np.array([4000.25, -70.5])


def prediction(**changes) -> dict[str, Any]:
    futures = np.arange(2 * 3 * 60 * 2, dtype=np.float32).reshape(2, 3, 60, 2)
    return {"trajectories": futures, "probability": np.array([[0.1, 0.6, 0.1], [1, 0, 0]], np.float32), **changes}


def example(**changes) -> dict[str, Any]:
    return {"scenario_id": "0a", "track_id": np.array(["17", "18"]), "origin": ORIGIN, **changes}


def written(*pairs) -> list[dict[str, Any]]:
    file = io.BytesIO()
    submission = Format(file)
    for one, other in pairs:
        submission.add(one, other)
    submission.finish()
    return pq.read_table(io.BytesIO(file.getvalue())).to_pylist()


def test_rows_are_the_futures_of_the_focal_track_in_the_frame_of_the_city():
    rows = written((prediction(), example()), (prediction(), example(scenario_id="1b")))
    assert [(row["scenario_id"], row["track_id"]) for row in rows] == [("0a", "17")] * 3 + [("1b", "17")] * 3
    assert [row["probability"] for row in rows[:3]] == pytest.approx([0.75, 0.125, 0.125])
    assert sum(row["probability"] for row in rows[:3]) == pytest.approx(1, abs=1e-12)
    wanted = prediction()["trajectories"][0, 1] + ORIGIN
    assert rows[0]["predicted_trajectory_x"] == wanted[:, 0].tolist()
    assert rows[0]["predicted_trajectory_y"] == wanted[:, 1].tolist()


def test_only_the_six_most_probable_modes_are_written():
    probability = np.arange(8.0)[None]
    rows = written((prediction(trajectories=np.zeros((1, 8, 60, 2)), probability=probability), example()))
    assert [row["probability"] for row in rows] == pytest.approx(np.arange(7, 1, -1) / 27)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"trajectories": np.zeros((2, 3, 80, 2))},
            r"trajectories \[2, 3, 80, 2\] .* Allowed: \[tracks, modes, 60, 2\]",
        ),
        ({"trajectories": np.full((2, 3, 60, 2), np.nan)}, "scenario 0a: a predicted future is not finite"),
        ({"probability": np.array([[-1, 1, 1.0]] * 2)}, "or a probability negative"),
        ({"probability": np.zeros((2, 3))}, "the probabilities of all modes are 0"),
    ],
)
def test_wrong_predictions_are_errors(changes, match):
    with pytest.raises(TaskError, match=match):
        written((prediction(**changes), example()))


def test_wrong_examples_are_errors():
    with pytest.raises(DataError, match="scenario 0a: it is in the dataset twice"):
        written((prediction(), example()), (prediction(), example()))
    with pytest.raises(DataError, match="its focal track is not known at the current step"):
        written((prediction(), example(track_id=np.array(["", ""]))))
