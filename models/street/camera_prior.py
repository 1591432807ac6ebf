"""A guess of the masks of `models/street/camera_scenes.py` that sees no image: the mean mask of the training scenes.

A cell belongs to a mask if its mean is above a threshold, the best one on validation scenes. It is what a model reaches
that learns where the masks are, and nothing from the images.

python -m convoy_zoo.models.street.camera_prior     renders 6,000 + 1,500 + 200 scenes: about 4 minutes of CPU time
"""

import argparse
from collections.abc import Sequence

import numpy as np

from .camera_scenes import MASKS, CameraScenes


def overlap(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each mask, `[masks]`, for arrays `[scenes, GRID, GRID, masks]`."""
    return (found & masks).sum((0, 1, 2)) / (found | masks).sum((0, 1, 2))


def prior(train: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Returns the guess `[GRID, GRID, masks]`."""
    mean = train.mean(0)
    thresholds = np.linspace(0.02, 0.98, 49)[:, None] * mean.max((0, 1))  # [thresholds, masks]
    scores = np.stack([overlap(np.broadcast_to(mean > one, validation.shape), validation) for one in thresholds])
    return mean > thresholds[scores.argmax(0), np.arange(mean.shape[-1])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the intersection over union on held-out scenes, which are those of `configs/bev_sim.py`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=6000, help="training scenes; validation has a quarter of them")
    parser.add_argument("--heldout", type=int, default=200, help="held-out scenes")
    args = parser.parse_args(arguments)
    for name, least in (("count", 4), ("heldout", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} = {getattr(args, name)}: allowed is a whole number from {least} on.")
    sizes = {0: args.count, 2_000_000: args.count // 4, 1_000_000: args.heldout}
    train, validation, heldout = (
        np.stack([scene["masks"] for scene in CameraScenes(count, seed)]) for seed, count in sizes.items()
    )
    found = np.broadcast_to(prior(train, validation), heldout.shape)
    for name, score, share in zip(MASKS, overlap(found, heldout), heldout.mean((0, 1, 2)), strict=True):
        print(f"{name}: intersection over union {score:.3f}; the mask covers {share:.3f} of the grid")


if __name__ == "__main__":
    main()
