"""Generated recordings in the layout of ETH/UCY: pedestrians who walk along circles."""

from pathlib import Path

import numpy as np

from convoy_zoo.models.pedestrians.eth_ucy import FRAMES_PER_STEP, RECORDINGS, SUBFOLDERS


def write(folder: Path, walkers: int = 6, frames: int = 30) -> Path:
    """Writes all files of the dataset to a folder, and returns it."""
    rng = np.random.default_rng(0)
    for subfolder, end in SUBFOLDERS.values():
        (folder / subfolder).mkdir(parents=True)
        for name in (name for names in RECORDINGS.values() for name in names):
            np.savetxt(folder / subfolder / f"{name}{end}.txt", recording(rng, walkers, frames), "%.1f", "\t")
    return folder


def recording(rng: np.random.Generator, walkers: int, frames: int) -> np.ndarray:
    """Returns the rows of a file, by frame: frame, pedestrian, x and y."""
    time = np.arange(frames)[:, None]
    heading = rng.uniform(-np.pi, np.pi, walkers) + rng.normal(0, 0.1, walkers) * time
    step = rng.uniform(0.2, 0.8, walkers)[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    position = rng.uniform(-5, 5, (walkers, 2)) + step.cumsum(axis=0)  # [frames, walkers, 2]
    names = np.broadcast_to(np.arange(1, walkers + 1), (frames, walkers))
    number = np.broadcast_to(780 + FRAMES_PER_STEP * time, (frames, walkers))
    return np.concatenate([number[..., None], names[..., None], position], axis=-1).reshape(-1, 4)
