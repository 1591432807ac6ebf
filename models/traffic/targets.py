"""One example for each agent to predict: what is around it, in its own frame, as tokens of a fixed number.

The frame has its origin at the agent's last observed position, and the x axis along its heading. Scenes are those of
models/traffic/scenes.py.
"""

from typing import Any

import numpy as np

from engine import DataError

from .scenes import CURRENT, KINDS, LIGHTS, RATE, STEPS, TYPES, scenes
from .simulation import POINTS

AGENTS, PIECES, SIGNALS = 20, 56, 8  # tokens: the agent itself and the nearest others, pieces of lanes, lights
FUTURE = STEPS - 1 - CURRENT
AHEAD = 2.0  # seconds: the map is that around the place where the agent would be then
SCALE = 20.0  # metres: positions are divided by it
MOVED = 2.0  # metres between the first and the last step of an agent that moves
TURNED = np.deg2rad(30)  # change of heading in the future of an agent that turns
STOPPED = 0.5  # metres per second
GROUPS = ("turning", "straight", "stopped", "standing")


class Targets:
    """Source of the agents to predict in the scenes of a split; an example is one agent.

    - `agents` float32 `[AGENTS, features]`, the agent itself first: position, heading, speed and validity at each
      observed step, size, and type.
    - `pieces` float32 `[PIECES, features]`: points, kind, width, speed limit.
    - `signals` float32 `[SIGNALS, features]`: stop point, direction, state at each observed step.
    - `mask`: bool arrays of the same names.
    - `speed` float32 in metres per second, `future` float32 `[FUTURE, 2]` in metres.
    - `type` int32, index into TYPES; `group` int32, index into GROUPS: stands for all 8 s, else is stopped now, else
      turns, else drives straight.
    - `near` int32: how many of the other agents in `agents` are within 20 m.
    - `id`, `scene` text: the names of the agent and of its scene, which has up to eight agents to predict.
    - `lanes` float32 `[PIECES, 5, 2]`: points of the pieces in metres, to draw them.

    Args:
        split: "train", "validation" or "test".
        folder: where the scenes are, or will be.
        standing: share of the agents that stand for all 8 s that is kept, in (0, 1].
        options: further arguments of `convoy_zoo.models.traffic.scenes.Traffic`.

    Raises:
        DataError: `standing` is not in (0, 1], or as for `convoy_zoo.models.traffic.scenes.scenes`.
    """

    def __init__(self, split: str = "train", folder: str = "data/traffic", standing: float = 1.0, **options):
        if not 0 < standing <= 1:
            raise DataError(f"standing = {standing}: allowed is a share above 0, up to 1.")
        self.scenes, found, stood = scenes(split, folder, **options), [], 0
        for number in range(len(self.scenes)):
            scene = self.scenes[number]
            for track in np.flatnonzero(scene["track_to_predict"]):
                stands = not has_moved(scene["track_position"][track])
                stood += stands
                if not stands or int(stood * standing) > int((stood - 1) * standing):  # evenly spaced ones
                    found.append((number, track))
        self.index = np.array(found, np.int32)
        if not len(self.index):
            raise DataError(f"{folder}: the scenes of {split} have no agents to predict. Simulate them again.")

    def __len__(self):
        return len(self.index)

    def __getitem__(self, index):
        number, track = map(int, self.index[index])
        scene = self.scenes[number]
        return {"id": f"{scene['scene_id']}-{track}", "scene": scene["scene_id"], **target(scene, track)}

    def fingerprint(self):
        """Returns what identifies the scenes and the agents."""
        return f"{self.scenes.fingerprint()} {len(self)} agents"


def target(scene: dict[str, np.ndarray], track: int) -> dict[str, Any]:
    """Returns the example of one agent of a scene, without its name."""
    own, heading = scene["track_position"][track], scene["track_heading"][track]
    speed, turn = scene["track_speed"][track, CURRENT], heading[CURRENT]
    c, s = np.cos(turn), np.sin(turn)
    frame = np.array([[c, -s], [s, c]], np.float32)

    def here(points):
        return (points - own[CURRENT]) @ frame

    position = here(scene["track_position"])
    distance = np.where(scene["track_valid"][:, CURRENT], np.hypot(*position[:, CURRENT].T), np.inf)
    distance[track] = -1
    chosen = np.argsort(distance, kind="stable")[:AGENTS]
    lanes = here(scene["map_points"])
    far = np.hypot(*(lanes[:, POINTS // 2] - [AHEAD * speed, 0]).T)
    pieces = np.argsort(far, kind="stable")[:PIECES]
    lights = np.argsort(far[scene["signal_lane"]], kind="stable")[:SIGNALS]
    tokens = {
        "agents": _agents(scene, chosen, position, turn),
        "pieces": _pieces(scene, pieces, lanes),
        "signals": _signals(scene, lights, lanes),
    }
    sizes = {"agents": AGENTS, "pieces": PIECES, "signals": SIGNALS}
    turned = np.abs((heading[-1] - turn + np.pi) % (2 * np.pi) - np.pi) > TURNED
    group = 3 if not has_moved(own) else 2 if speed < STOPPED else 0 if turned else 1
    return {
        **{name: padded(x, sizes[name]) for name, x in tokens.items()},
        "mask": {name: np.arange(sizes[name]) < len(x) for name, x in tokens.items()},
        "lanes": padded(lanes[pieces], PIECES),
        "speed": np.float32(speed),
        "future": position[track, CURRENT + 1 :].astype(np.float32),
        "type": np.int32(scene["track_type"][track]),
        "group": np.int32(group),
        "near": np.int32((distance[chosen[1:]] < 20).sum()),
    }


def has_moved(positions: np.ndarray) -> bool:
    """Returns whether an agent with these positions `[time, 2]` moves."""
    return bool(np.hypot(*(positions[-1] - positions[0])) > MOVED)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows of an array as float32, with zeros up to `size` rows."""
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]))]).astype(np.float32)


def _agents(scene, chosen: np.ndarray, position: np.ndarray, turn: float) -> np.ndarray:
    seen = slice(0, CURRENT + 1)
    valid, heading = scene["track_valid"][chosen, seen, None], scene["track_heading"][chosen, seen] - turn
    motion = [np.cos(heading), np.sin(heading), scene["track_speed"][chosen, seen] / 10]
    states = np.concatenate([position[chosen, seen] / SCALE, np.stack(motion, -1), valid], -1) * valid
    kind = np.eye(len(TYPES))[scene["track_type"][chosen]]
    return np.concatenate([states.reshape(len(chosen), -1), scene["track_size"][chosen] / 5, kind], -1)


def _pieces(scene, pieces: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    kind = np.eye(len(KINDS))[scene["map_kind"][pieces]]
    rest = [scene["map_width"][pieces, None] / 5, scene["map_speed_limit"][pieces, None] / 10]
    return np.concatenate([lanes[pieces].reshape(len(pieces), 2 * POINTS) / SCALE, kind, *rest], -1)


def _signals(scene, lights: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    lane = lanes[scene["signal_lane"][lights]]
    ends = np.concatenate([lane[:, 0], lane[:, -1]], -1) / SCALE
    state = np.eye(len(LIGHTS))[scene["signal_state"][lights, : CURRENT + 1]]
    return np.concatenate([ends, state.reshape(len(lights), (CURRENT + 1) * len(LIGHTS))], -1)


def in_group(example):
    """Returns the slice of an example: turning, straight, stopped, or standing."""
    return {name: example["group"] == number for number, name in enumerate(GROUPS)}


def of_type(example):
    """Returns the slice of an example: the type of the agent."""
    return {name: example["type"] == number for number, name in enumerate(TYPES)}


def times() -> np.ndarray:
    """Returns the times of the future steps, in seconds, float32 `[FUTURE]`."""
    return np.arange(1, FUTURE + 1, dtype=np.float32) / RATE
