"""Miniatures of both motion datasets for tests, and batches of their examples."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from convoy_zoo.models.miniatures import argoverse2_motion, waymo_motion
from convoy_zoo.models.traffic.motion_scenes import Argoverse2Scenes, WaymoScenes

SIZES: dict[str, Any] = {"targets": 3, "agents": 4, "lines": 6}


def sources(folder: Path) -> dict[str, Any]:
    """Returns small sources of both datasets, by benchmark, which are written to a folder first."""
    argoverse2_motion.write(folder / "argoverse2", {"train": 3, "test": 1}, agents=4)
    waymo_motion.write(folder / "waymo", {"training": 3, "testing": 1}, agents=4)
    return {
        "argoverse2": Argoverse2Scenes("train", str(folder / "argoverse2"), history=5, stride=10, **SIZES),
        "waymo": WaymoScenes("training", str(folder / "waymo"), history=5, stride=2, others=5, **SIZES),
    }


def batch(source: Any) -> dict[str, Any]:
    """Returns all examples of a source, without text."""
    rows = [{name: x for name, x in source[n].items() if np.asarray(x).dtype.kind != "U"} for n in range(len(source))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
