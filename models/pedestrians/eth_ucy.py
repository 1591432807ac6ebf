"""ETH/UCY: pedestrians seen from above, in metres at 2.5 Hz (Pellegrini et al. 2009, Lerner et al. 2007).

A scene is a window of 20 frames, 8 observed and 12 to predict, with the pedestrians that are present in all of them.
The protocol leaves one of the five places out: its recordings are the test split, those of all other places are train
and validation.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from engine import DataError, Packed

OBSERVED, PREDICTED = 8, 12  # frames
FRAMES_PER_STEP = 10  # frame numbers between two frames of a file

Place = Literal["eth", "hotel", "univ", "zara1", "zara2"]
Split = Literal["train", "validation", "test"]
PLACES = get_args(Place)

RECORDINGS = {
    "eth": ("biwi_eth",),
    "hotel": ("biwi_hotel",),
    "univ": ("students001", "students003"),
    "zara1": ("crowds_zara01",),
    "zara2": ("crowds_zara02",),
    "none": ("crowds_zara03", "uni_examples"),  # recorded at no place that is tested
}
SUBFOLDERS = {"train": ("train", "_train"), "validation": ("val", "_val"), "test": ("all", "")}  # folder, end of a name
FOLDER = "data/eth_ucy"


class Scenes:
    """The windows of a split: ragged `history` `[agents, 8, 2]` and `future` `[agents, 12, 2]`, float32 metres.

    A recording has one window for each frame at which it has enough agents.
    """

    def __init__(self, held_out: Place, split: Split, folder: str = FOLDER, min_agents: int = 1):
        """Reads the recordings.

        Args:
            held_out: the place of the test split, which the other splits leave out.
            split: which part to read.
            folder: has the subfolders `train`, `val` and `all`.
            min_agents: windows with fewer agents are left out. Social-GAN, and papers that use its loader, take 2.
        """
        for value, allowed in ((held_out, PLACES), (split, get_args(Split))):
            if value not in allowed:
                raise DataError(
                    f"convoy_zoo.models.pedestrians.eth_ucy: {value!r} is unknown: allowed are {', '.join(allowed)}."
                )
        subfolder, end = SUBFOLDERS[split]
        places = [place for place in RECORDINGS if (place == held_out) == (split == "test")]
        paths = [Path(folder) / subfolder / f"{name}{end}.txt" for place in places for name in RECORDINGS[place]]
        self._windows = [window for path in paths for window in windows(read(path)) if len(window) >= min_agents]

    def __len__(self):
        return len(self._windows)

    def __getitem__(self, index):
        window = self._windows[index]
        return {"history": window[:, :OBSERVED], "future": window[:, OBSERVED:]}

    def lengths(self):
        """Returns the number of agents of each window."""
        return np.array([len(window) for window in self._windows])


class Rows(Packed):
    """The windows of a split, packed into rows of `length` agents. The largest window has 57, in students001."""

    def __init__(self, held_out: Place, split: Split, folder: str = FOLDER, length: int = 64, min_agents: int = 1):
        super().__init__(Scenes(held_out, split, folder, min_agents), length, fields=["history", "future"])


class AugmentedRows(Rows):
    """Rows whose windows are rotated, mirrored and scaled at random, each window on its own."""

    largest = 1.5  # scale; the smallest is its inverse

    def transform(self, example, rng):
        count = len(example["segment_mask"])
        angle, scale = rng.uniform(-np.pi, np.pi, count), self.largest ** rng.uniform(-1, 1, count)
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        mirror = np.where(rng.random(count) < 0.5, -1, 1)
        matrix = np.array([[c, s], [-s * mirror, c * mirror]], np.float32).transpose(2, 0, 1)  # [segments, 2, 2]
        matrix = matrix[np.maximum(example["segment_ids"] - 1, 0)]  # one for each agent
        return {**example, **{name: example[name] @ matrix for name in ("history", "future")}}


def read(path: Path) -> np.ndarray:
    """Returns the rows of a file: frame, pedestrian, x and y, float64 `[rows, 4]`.

    Raises:
        DataError: the file does not exist, or is no table of four columns.
    """
    if not path.exists():
        raise DataError(
            f"{path}: not found. Copy the folders all_data, train and val of "
            "https://github.com/StanfordASL/Trajectron-plus-plus/tree/master/experiments/pedestrians/raw/raw to "
            f"{path.parent.parent}, all_data with the name all."
        )
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: is no table of numbers ({error}). Fetch it again.") from error
    if rows.shape[1] != 4:
        raise DataError(f"{path}: has {rows.shape[1]} columns. Expected 4: frame, pedestrian, x and y.")
    return rows


def windows(rows: np.ndarray) -> list[np.ndarray]:
    """Returns the windows of a recording in the order of time, each float32 `[agents, 20, 2]`."""
    length = OBSERVED + PREDICTED
    rows = rows[np.lexsort((rows[:, 0], rows[:, 1]))]  # by pedestrian, then frame
    frame, pedestrian = rows[:, 0], rows[:, 1]
    last = length - 1
    # Frames are unique for a pedestrian, so a span without a gap has exactly `last` steps.
    whole = (pedestrian[last:] == pedestrian[:-last]) & (frame[last:] - frame[:-last] == last * FRAMES_PER_STEP)
    starts = np.flatnonzero(whole)
    tracks = np.stack([rows[starts + step, 2:] for step in range(length)], axis=1).astype(np.float32)
    order = np.argsort(frame[starts], kind="stable")
    cuts = np.flatnonzero(np.diff(frame[starts[order]])) + 1
    return [window for window in np.split(tracks[order], cuts) if len(window)]
