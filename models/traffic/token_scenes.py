"""Simulated traffic scenes for next-token models: of fixed size, with the agents and lanes nearest to the origin."""

import uuid
from pathlib import Path

import jax
import numpy as np

from engine import DataError

from .movements import k_means, movement
from .scenes import KINDS, MAP_RADIUS, STEPS, VERSION, scenes
from .simulation import PIECE, POINTS

ROAD = np.isin(KINDS, ("road", "junction"))  # kinds on which vehicles drive
FITTED = 500  # scenes whose movements the vocabulary is made from


class TokenScenes:
    """The scenes of a split, from `convoy_zoo.models.traffic.scenes.scenes`.

    An example has `pose` `[agents, STEPS, 3]`, `valid` `[agents, STEPS]`, `size` `[agents, 2]` and `type` `[agents]`;
    and of the lanes `points` `[pieces, POINTS, 2]`, `width`, `limit`, `kind`, `road` and `mask` `[pieces]`, and `light`
    `[pieces, STEPS]`: 0 for none, else 1 + the index into LIGHTS. Within `reach` metres of the origin, the lanes are
    complete.
    """

    def __init__(
        self,
        split: str = "train",
        folder: str = "data/traffic",
        agents: int = 32,
        pieces: int = 256,
        every: int = 1,
    ):
        """Reads the scenes, which are simulated on first use.

        Args:
            split: as for `convoy_zoo.models.traffic.scenes.scenes`.
            folder: likewise.
            agents: the nearest so many agents of a scene are kept.
            pieces: likewise for pieces of lanes.
            every: the source has one of so many scenes.

        Raises:
            DataError: `every` is below 1, or as for `convoy_zoo.models.traffic.scenes.scenes`.
        """
        if every < 1:
            raise DataError(f"every = {every}: allowed is a whole number from 1 on.")
        self.source, self.agents, self.pieces, self.every = scenes(split, folder), agents, pieces, every

    def __len__(self):
        return -(-len(self.source) // self.every)

    def __getitem__(self, index):
        scene = self.source[self.every * int(index)]
        distance = np.hypot(*np.moveaxis(scene["map_points"], -1, 0)).min(-1)
        order = np.argsort(distance, kind="stable")
        near, left_out = np.sort(order[: self.pieces]), distance[order[self.pieces :]]
        # A piece may come nearer between its points, and so does its edge.
        reach = min([MAP_RADIUS, *left_out[:1]]) - PIECE / (POINTS - 1)
        light = np.zeros((len(distance), STEPS), np.int32)
        light[scene["signal_lane"]] = scene["signal_state"] + 1
        agents, pieces = (lambda x: padded(x, self.agents)), (lambda x: padded(x[near], self.pieces))
        pose = np.concatenate([scene["track_position"], scene["track_heading"][..., None]], -1)
        return {
            "pose": agents(pose),
            "valid": agents(scene["track_valid"]),
            "size": agents(scene["track_size"]),
            "type": agents(scene["track_type"].astype(np.int32)),
            "points": pieces(scene["map_points"]),
            "width": pieces(scene["map_width"]),
            "limit": pieces(scene["map_speed_limit"]),
            "kind": pieces(scene["map_kind"].astype(np.int32)),
            "road": pieces(ROAD[scene["map_kind"]]),
            "mask": pieces(np.ones(len(distance), bool)),
            "light": pieces(light),
            "reach": np.float32(reach),
        }


def padded(values, count):
    """Returns the first `count` rows, with rows of zeros if there are fewer."""
    values = values[:count]
    return np.pad(values, [(0, count - len(values))] + [(0, 0)] * (values.ndim - 1))


def vocabulary(folder: str = "data/traffic", count: int = 512) -> np.ndarray:
    """Returns the tokens `[count, 3]` of the training scenes in a folder; the first call makes them and keeps them.

    The name of the file has the version of the scenes. A model must store the tokens, since a new file differs if
    another version of SUMO has simulated the scenes.

    Raises:
        DataError: they cannot be written, or as for `convoy_zoo.models.traffic.scenes.scenes`.
    """
    path = Path(folder).expanduser() / f"tokens-v{VERSION}-{count}.npy"
    if not path.exists():
        source = TokenScenes("train", folder)
        chosen = np.linspace(0, len(source) - 1, min(FITTED, len(source))).astype(int)
        parts = []
        for scene in (source[index] for index in chosen):
            both = scene["valid"][:, 1:] & scene["valid"][:, :-1]
            with jax.ensure_compile_time_eval():  # `build` may be traced
                parts.append(np.asarray(movement(scene["pose"][:, :-1], scene["pose"][:, 1:]))[both])
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.npy")  # two hosts may have processes of the same number
        try:
            np.save(temporary, k_means(np.concatenate(parts), count))
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}. Make its folder writable.") from error
    return np.load(path)
