"""The file of the motion forecasting challenge of Argoverse 2, as `ChallengeSubmission` of the package av2 reads it.

It is a table in Parquet with a row for each predicted future of the focal track of each scenario (extra `parquet`).
"""

from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np

from engine.base.errors import DataError, TaskError
from engine.readers.extras import import_extra
from engine.submissions.format import SubmissionFormat

STEPS, MOST_MODES = 60, 6
ROWS = 6000  # of a row group


class Format(SubmissionFormat):
    """Futures of the focal track of each scenario, 6 s at 10 Hz in the frame of the city, with probabilities."""

    suffix = ".parquet"
    predictions: ClassVar = {
        "trajectories": f"[tracks, modes, {STEPS}, 2]: x and y in metres, relative to `origin`; the focal track first",
        "probability": "[tracks, modes], 0 or more; the file has their shares, and of the modes the 6 most probable",
    }
    entries: ClassVar = {
        "scenario_id": "text",
        "track_id": "[tracks], text: identifiers of the tracks, the focal track first",
        "origin": "[2], float64: x and y in metres, in the frame of the city",
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        import_extra("pyarrow.parquet", "parquet", "The file of Argoverse 2")
        import pyarrow as pa
        import pyarrow.parquet as pq

        line = pa.list_(pa.float64())
        text = [("scenario_id", pa.string()), ("track_id", pa.string()), ("probability", pa.float64())]
        self._schema = pa.schema([*text, ("predicted_trajectory_x", line), ("predicted_trajectory_y", line)])
        self._writer = pq.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._scenarios = set[str]()

    def add(self, prediction: Mapping[str, np.ndarray], example: Mapping[str, Any]) -> None:
        scenario, track = str(example["scenario_id"]), str(np.asarray(example["track_id"])[0])
        if scenario in self._scenarios:
            raise DataError(f"scenario {scenario}: it is in the dataset twice, but the challenge has it once.")
        if not track:
            raise DataError(f"scenario {scenario}: its focal track is not known at the current step. Leave it out.")
        self._scenarios.add(scenario)
        futures, probability = focal_futures(scenario, prediction)
        futures = futures + np.asarray(example["origin"], np.float64)
        for future, share in zip(futures, probability.tolist(), strict=True):
            x, y = future.T.tolist()
            self._rows.append(dict(zip(self._schema.names, (scenario, track, share, x, y), strict=True)))
        if len(self._rows) >= ROWS:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def focal_futures(scenario: str, prediction: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most probable futures of the first track, `[modes, 60, 2]`, and their probabilities, float64."""
    futures, probability = (np.asarray(prediction[name], np.float64) for name in ("trajectories", "probability"))
    if futures.ndim != 4 or futures.shape[2:] != (STEPS, 2) or futures.shape[:2] != probability.shape:
        raise TaskError(
            f"format = 'argoverse2': trajectories {list(futures.shape)} and probability {list(probability.shape)} of "
            f"an example. Allowed: [tracks, modes, {STEPS}, 2] and [tracks, modes]."
        )
    return most_probable(f"scenario {scenario}", futures[0], probability[0], MOST_MODES, shares=True)


def most_probable(
    where: str, futures: np.ndarray, probability: np.ndarray, most: int, *, shares: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` futures `[modes, ...]` by falling probability, and these; with `shares`, their sum is 1.

    Raises:
        TaskError: a number is not finite, a probability is negative, or all are 0 and `shares` is set.
    """
    if not np.isfinite(futures).all() or not np.isfinite(probability).all() or (probability < 0).any():
        raise TaskError(f"{where}: a predicted future is not finite, or a probability negative. Correct Task.predict.")
    order = np.argsort(-probability, kind="stable")[:most]
    futures, probability = futures[order], probability[order]
    if shares:
        if not probability.sum():
            raise TaskError(f"{where}: the probabilities of all modes are 0. Correct Task.predict.")
        probability = probability / probability.sum()
    return futures, probability
