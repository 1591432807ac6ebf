"""The file of Waymo's motion prediction challenge: a message `MotionChallengeSubmission` of Protocol Buffers.

The message is written scenario by scenario: a repeated field may be written in parts. The numbers of the fields are
those of motion_submission.proto in https://github.com/waymo-research/waymo-open-dataset.
"""

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from engine.base.errors import DataError, TaskError
from engine.submissions.argoverse2 import most_probable
from engine.submissions.format import SubmissionFormat

STEPS, EVERY, MOST_MODES = 16, 5, 6
MOTION_PREDICTION = 1  # of the enum SubmissionType


class Format(SubmissionFormat):
    """Futures of the tracks to predict of each scenario, 8 s at 2 Hz in the frame of the scenario, with confidences.

    The file says that neither lidar, nor cameras, nor a public pretrained model was used.
    """

    suffix = ".binproto"
    predictions: ClassVar = {
        "trajectories": f"[tracks, modes, {STEPS * EVERY} or {STEPS}, 2]: x and y in metres at 10 or 2 Hz from 0.1 or "
        "0.5 s on, relative to `origin`",
        "probability": "[tracks, modes], 0 or more: confidences; the file has the 6 most probable modes",
    }
    entries: ClassVar = {
        "scenario_id": "text",
        "track_id": "[tracks], integers: identifiers of the tracks, -1 for padding",
        "tracks_to_predict": "integer: how many the scenario has",
        "origin": "[2], float64: x and y in metres, in the frame of the scenario",
        "account_name": "text: the e-mail address of the account at waymo.com/open",
        "method_name": "text: short name of the method",
        "model_parameters": "text: number of parameters of the model, such as 2M",
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._about: tuple[str, ...] | None = None
        self._scenarios = set[str]()

    def add(self, prediction: Mapping[str, np.ndarray], example: Mapping[str, Any]) -> None:
        scenario, tracks = str(example["scenario_id"]), np.asarray(example["track_id"])
        self._describe(
            scenario, tuple(str(example[name]) for name in ("account_name", "method_name", "model_parameters"))
        )
        if scenario in self._scenarios:
            raise DataError(f"scenario {scenario}: it is in the dataset twice, but the challenge has it once.")
        self._scenarios.add(scenario)
        count, found = int(example["tracks_to_predict"]), int((tracks >= 0).sum())
        if count != found:
            raise DataError(
                f"scenario {scenario}: the example has {found} of its {count} tracks to predict, and the challenge "
                "needs all. Raise the number of targets of the dataset: --data.targets=8."
            )
        futures, probability = _checked(prediction, len(tracks))
        futures = futures + np.asarray(example["origin"], np.float64)
        objects = b"".join(
            _part(1, _object(scenario, int(track), futures[row], probability[row]))
            for row, track in enumerate(tracks.tolist())
            if track >= 0
        )
        self.file.write(_part(1, _part(1, scenario.encode()) + _part(2, objects)))

    def finish(self) -> None:
        self._describe("", self._about or ("", "", ""))

    def _describe(self, scenario: str, about: tuple[str, ...]) -> None:
        """Writes the fields of the whole submission once."""
        if about == self._about:
            return
        if self._about is not None:
            raise DataError(
                f"scenario {scenario}: its account, method or number of parameters differs from the others."
            )
        self._about = about
        account, method, parameters = (text.encode() for text in about)
        self.file.write(_part(3, account) + _part(4, method) + _number(2, MOTION_PREDICTION))
        self.file.write(_number(9, 0) + _number(10, 0) + _number(11, 0) + _part(12, parameters))


def _checked(prediction: Mapping[str, np.ndarray], tracks: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns futures at 2 Hz, `[tracks, modes, 16, 2]`, and probabilities."""
    futures, probability = (np.asarray(prediction[name], np.float64) for name in ("trajectories", "probability"))
    shapes = [(*probability.shape, steps, 2) for steps in (STEPS * EVERY, STEPS)]
    if probability.ndim != 2 or len(probability) != tracks or futures.shape not in shapes:
        raise TaskError(
            f"format = 'waymo': trajectories {list(futures.shape)}, probability {list(probability.shape)} and track_id "
            f"[{tracks}] of an example. Allowed: [tracks, modes, {STEPS * EVERY} or {STEPS}, 2], [tracks, modes] and "
            "[tracks]."
        )
    return futures[:, :, EVERY - 1 :: EVERY] if futures.shape[2] > STEPS else futures, probability


def _object(scenario: str, track: int, futures: np.ndarray, probability: np.ndarray) -> bytes:
    """Returns a message SingleObjectPrediction."""
    where = f"scenario {scenario}, track {track}"
    text = _number(1, track)
    for future, confidence in zip(*most_probable(where, futures, probability, MOST_MODES), strict=True):
        x, y = (struct.pack(f"<{STEPS}f", *column) for column in future.T.tolist())
        trajectory = _part(2, x) + _part(3, y)
        text += _part(2, _part(1, trajectory) + _varint(2 << 3 | 5) + struct.pack("<f", confidence))
    return text


def _part(number: int, data: bytes) -> bytes:
    """Returns a field of text, of packed numbers, or of a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    """Returns a field of an integer from 0 on."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
