"""Scores of KITTI's recalls, and matches of frames in blocks, equal to those of all frames at once."""

import dataclasses

import numpy as np
import pytest

from engine.driving.kitti_matching import Frames, score_limits


def test_score_limits_are_closest_to_the_recalls():
    scores = np.arange(400)[::-1] / 400
    found = score_limits(scores, 400)
    assert len(found) == 41
    recalls = 1 - found  # of the match at this score
    assert np.abs(recalls - np.arange(41) / 40).max() <= 1.5 / 400


def test_each_of_few_matches_is_a_limit():
    assert score_limits(np.array([0.2, 0.9, 0.9]), 3).tolist() == [0.9, 0.9, 0.2]
    assert score_limits(np.empty(0), 3).tolist() == []


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    overlaps = rng.random((30, 7, 4)) * (rng.random((30, 7, 4)) < 0.4)
    roles, labels = rng.integers(-1, 2, (30, 7)), rng.choice([-1, 0, 0, 0, 1], (30, 4))
    return Frames(rng.integers(0, 20, (30, 7)) / 20, roles, labels, overlaps, rng.random((30, 7)) < 0.1, 0.3)


def test_blocks_of_frames_give_the_same(frames, monkeypatch):
    found = frames.average_precision()
    assert 0.1 < found < 0.9
    monkeypatch.setattr("engine.driving.kitti_matching._BLOCK", 4)
    assert frames.average_precision() == found


def test_a_prediction_in_a_region_is_no_false_positive(frames):
    everywhere = dataclasses.replace(frames, in_region=np.ones((30, 7), bool))
    assert everywhere.average_precision() > frames.average_precision()


def test_frames_without_predictions_have_no_precision_and_without_labels_no_value(frames):
    none = dataclasses.replace(frames, roles=np.full((30, 7), -1))
    assert none.average_precision() == 0
    assert np.isnan(dataclasses.replace(frames, labels=np.full((30, 4), 1)).average_precision())
