"""Data and Tasks of the driving workloads that need no files: examples of the right shapes, whose values mean nothing.

The shapes are those of the real data, with the sizes of docs/public-datasets.md.
"""

from typing import Any

import numpy as np

from convoy_zoo.models.traffic import motion_examples
from convoy_zoo.models.traffic.motion_tokens import NextToken
from convoy_zoo.models.traffic.token_model import TokenModel
from engine import Sequences


class Agents:
    """Agents to predict, of the shapes of `convoy_zoo.models.traffic.targets.Targets`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = {"agents": (20, 37), "pieces": (56, 16), "signals": (8, 19)}
        return {
            **{name: np.zeros(shape, np.float32) for name, shape in features.items()},
            "mask": {name: np.ones(count, bool) for name, (count, _) in features.items()},
            "lanes": np.zeros((56, 5, 2), np.float32),
            "speed": np.float32(1),
            "future": np.ones((12, 2), np.float32),
            "type": np.int32(0),
            "group": np.int32(0),
            "near": np.int32(0),
        }


class TokenScenes:
    """Scenes of the shapes of `convoy_zoo.models.traffic.token_scenes.TokenScenes`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        agents, pieces, steps = 32, 256, 17
        return {
            "pose": np.zeros((agents, steps, 3), np.float32),
            "valid": np.ones((agents, steps), bool),
            "size": np.ones((agents, 2), np.float32),
            "type": np.zeros(agents, np.int32),
            "points": np.zeros((pieces, 5, 2), np.float32),
            "width": np.ones(pieces, np.float32),
            "limit": np.ones(pieces, np.float32),
            "kind": np.zeros(pieces, np.int32),
            "road": np.ones(pieces, bool),
            "mask": np.ones(pieces, bool),
            "light": np.zeros((pieces, steps), np.int32),
            "reach": np.float32(50),
        }


class PackedScenes:
    """Rows of the shapes of `convoy_zoo.models.pedestrians.eth_ucy.Rows`."""

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "history": np.zeros((64, 8, 2), np.float32),
            "future": np.zeros((64, 12, 2), np.float32),
            "segment_ids": np.ones(64, np.int32),
            "mask": np.ones(64, bool),
        }


class Boxes:
    """Objects of nuScenes."""

    objects = 300

    def __len__(self) -> int:
        return 1 << 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "boxes": np.ones((self.objects, 9), np.float32),
            "label": np.zeros(self.objects, np.int32),
            "attribute": np.zeros(self.objects, np.int32),
            "mask": {"objects": np.ones(self.objects, bool)},
        }


class Sweeps(Boxes):
    """Ten sweeps of nuScenes of the shapes of `convoy_zoo.models.street.nuscenes.sweeps`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = super().__getitem__(index)
        mask = {**found["mask"], "points": np.ones(300_000, bool)}
        return {**found, "points": np.zeros((300_000, 5), np.float32), "mask": mask}


class Frames(Boxes):
    """Frames of KITTI of the shapes of `convoy_zoo.models.street.kitti.frames`, with what the loss reads."""

    objects = 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = super().__getitem__(index)
        mask = {**found["mask"], "points": np.ones(70_000, bool)}
        return {**found, "points": np.zeros((70_000, 4), np.float32), "mask": mask}


class Images(Boxes):
    """Six cameras of nuScenes of the shapes of `convoy_zoo.models.street.nuscenes_cameras.samples`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            **super().__getitem__(index),
            "images": np.zeros((6, 256, 704, 3), np.uint8),
            "intrinsics": np.zeros((6, 3, 3), np.float32),
            "poses": np.zeros((6, 4, 4), np.float32),
            "pose": np.zeros(3, np.float32),
        }


def drives(length: int) -> Sequences:
    """Returns windows of drives of `Images`, of 40 frames each, as `nuscenes_cameras.drives` does."""
    frame = np.arange(len(Images()))
    return Sequences(Images(), group=frame // 40, order=0.5 * frame, length=length, carry=True)


class Motion:
    """Scenarios of the shapes of `convoy_zoo.models.traffic.motion_examples.example`, with one agent and one polyline.

    Args:
        targets, agents, lines, history, future: as in `motion_examples.Sizes`.
    """

    def __init__(self, targets: int, agents: int, lines: int, history: int, future: int):
        sizes = motion_examples.Sizes(targets, agents, lines, history, 1, future)
        time, points = (1, history + future), (1, motion_examples.POINTS)
        scenario = motion_examples.Scenario(
            position=np.zeros((*time, 2)),
            heading=np.zeros(time),
            velocity=np.zeros((*time, 2)),
            size=np.zeros((*time, 2)),
            valid=np.ones(time, bool),
            kind=np.zeros(1, int),
            targets=np.zeros(1, int),
            current=history - 1,
            lines=np.zeros((*points, 2)),
            line_valid=np.ones(points, bool),
            line_kind=np.zeros(1, int),
            line_light=np.zeros(1, int),
            line_rest=np.zeros(1),
        )
        self.example = motion_examples.example(scenario, sizes)

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example


class Tokens(NextToken):
    """The simulation of traffic with tokens that need no scenes."""

    def build(self, rngs):
        return TokenModel(self, np.zeros((self.tokens, 3), np.float32), rngs)
