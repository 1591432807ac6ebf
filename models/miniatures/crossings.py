"""Simulates traffic on a crossing of roads for miniatures of motion datasets, without SUMO.

Agents follow lanes: they slow down before turns and wait at red lights. They do not react to each other. A scene
depends on nothing but its seed.
"""

import dataclasses

import numpy as np

RATE, STEPS = 10, 110  # steps per second, and steps of a scene
TYPES = ("vehicle", "bus", "cyclist", "motorcyclist", "pedestrian", "construction")
SIZES = ((4.6, 1.9, 1.6), (11.0, 2.8, 3.2), (1.8, 0.7, 1.7), (2.1, 0.9, 1.6), (0.7, 0.7, 1.7), (0.6, 0.6, 0.9))
"""Length, width and height of each type, in metres."""
LANE, ARM, BOX = 3.6, 90.0, 14.0  # metres: width of a lane, length of an arm, from the centre to the stop lines
TURN_SPEED, BRAKING, ACCELERATION = 5.0, 3.0, 2.0  # m/s, m/s2, m/s2
SPACING = 2.0  # metres between the points of a lane
STOP, GO = 4, 6  # states of a light, as in map.proto of Waymo


@dataclasses.dataclass
class Lane:
    """A lane: its number, centre line `[points, 2]`, the lanes before and after it, and its place in the crossing.

    `arm` is that from which the lane leads into the crossing, -1 for a lane that leads out of it.
    """

    number: int
    points: np.ndarray
    before: list[int]
    after: list[int]
    arm: int
    junction: bool


@dataclasses.dataclass
class Crossing:
    """A scene, in metres. Tracks are sorted so that those to predict come first; the first is that of the dataset.

    Attributes:
        lanes: all lanes, a lane's number is its index.
        crosswalks: corners `[crosswalks, 4, 2]`; the edges that people walk along are the corners 0, 1 and 3, 2.
        area: outline of the road, `[points, 2]`.
        types: indices into TYPES, `[tracks]`; the last track is the recording vehicle.
        states: x, y, heading, and the velocity along x and y, `[tracks, STEPS, 5]`.
        valid: states that are known, bool `[tracks, STEPS]`.
        predicted: number of tracks to predict.
        lights: STOP or GO of each arm and step, `[arms, STEPS]`.
    """

    lanes: list[Lane]
    crosswalks: np.ndarray
    area: np.ndarray
    types: np.ndarray
    states: np.ndarray
    valid: np.ndarray
    predicted: int
    lights: np.ndarray


def crossing(seed: tuple[int, ...], agents: int = 10) -> Crossing:
    """Returns the scene of a seed.

    Args:
        seed: numbers that the scene depends on.
        agents: moving agents, besides the recording vehicle; at least 2.
    """
    rng = np.random.default_rng(seed)
    arms = int(rng.integers(3, 5))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(arms) * np.pi / 2 + rng.uniform(-0.15, 0.15, arms)
    origin = rng.uniform(-4000, 4000, 2).round(2)
    lanes = _lanes(angles)
    lights = np.where((np.arange(STEPS) / RATE < rng.uniform(0, 12)) == (np.arange(arms)[:, None] % 2), GO, STOP)
    moving = np.array([_moving(rng, lanes, lights, angles) for _ in range(agents + 1)], object)
    types = np.array([kind for kind, _ in moving])
    states = np.stack([states for _, states in moving])
    order = _most_motion_first(types, states)
    cones = rng.uniform(BOX, ARM / 2, (2, 1, 1)) * _unit(rng.choice(angles, 2))[:, None]
    standing = np.concatenate([cones + LANE * 1.5, np.zeros((2, 1, 3))], -1).repeat(STEPS, 1)
    states = np.concatenate([states[order[:-1]], standing, states[order[-1:]]])
    types = np.concatenate([types[order[:-1]], [TYPES.index("construction")] * 2, types[order[-1:]]])
    predicted = min(4, agents // 2)
    states[..., :2] += origin
    for lane in lanes:
        lane.points = lane.points + origin
    crosswalks = np.stack([_crosswalk(angle) for angle in angles]) + origin
    return Crossing(
        lanes, crosswalks, _area(angles) + origin, types, states, _valid(rng, len(types), predicted), predicted, lights
    )


def _unit(angle: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _lanes(angles: np.ndarray) -> list[Lane]:
    """Returns a lane into the crossing and one out of it for each arm, and the lanes that connect them."""
    count, along = len(angles), np.arange(ARM, BOX - 0.1, -SPACING)[:, None]
    right = np.stack([-np.sin(angles), np.cos(angles)], -1) * LANE / 2  # of a driver who comes towards the centre
    into = [Lane(n, along * _unit(angles[n]) + right[n], [], [], n, False) for n in range(count)]
    out = [Lane(count + n, along[::-1] * _unit(angles[n]) - right[n], [], [], -1, False) for n in range(count)]
    lanes = into + out
    for one in range(count):
        for other in range(count):
            if one != other:
                start, end = into[one].points[-1], out[other].points[0]
                points = _curve(start, -_unit(angles[one]), end, _unit(angles[other]))
                lanes.append(Lane(len(lanes), points, [one], [count + other], one, True))
                into[one].after.append(lanes[-1].number)
                out[other].before.append(lanes[-1].number)
    return lanes


def _curve(start: np.ndarray, ahead: np.ndarray, end: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Returns a cubic curve that leaves `start` along `ahead` and reaches `end` along `away`."""
    reach = 0.55 * np.hypot(*(end - start))
    corners = np.stack([start, start + reach * ahead, end - reach * away, end])
    t = np.linspace(0, 1, 13)[:, None]
    return ((1 - t) ** np.array([3, 2, 1, 0]) * t ** np.array([0, 1, 2, 3]) * np.array([1, 3, 3, 1])) @ corners


def _crosswalk(angle: float) -> np.ndarray:
    ahead, side = _unit(angle), _unit(angle + np.pi / 2)
    near, far, half = (BOX - 5) * ahead, (BOX - 2) * ahead, (LANE + 1) * side
    return np.stack([near - half, near + half, far + half, far - half])


def _area(angles: np.ndarray) -> np.ndarray:
    """Returns the outline of the road, counter-clockwise."""
    corners = []
    for angle in angles:
        ahead, side = _unit(angle), LANE * _unit(angle + np.pi / 2)
        corners += [BOX * ahead - side, ARM * ahead - side, ARM * ahead + side, BOX * ahead + side]
    return np.stack(corners)


def _moving(
    rng: np.random.Generator, lanes: list[Lane], lights: np.ndarray, angles: np.ndarray
) -> tuple[int, np.ndarray]:
    """Returns the type and the states of an agent on a random way."""
    kind = int(rng.choice(5, p=[0.6, 0.05, 0.1, 0.05, 0.2]))
    if TYPES[kind] == "pedestrian":
        corners = _crosswalk(rng.choice(angles))[:2][:: rng.choice([1, -1])]
        before = 8 * (corners[0] - corners[1]) / np.hypot(*(corners[1] - corners[0]))
        path = np.stack([corners[0] + before, corners[0], corners[1], corners[1] - before])
        shift = rng.uniform(-1, 1, 2)
        return kind, _followed(path + shift, rng.uniform(0, 8) + rng.uniform(0.8, 1.8) / RATE * np.arange(STEPS))
    into = lanes[int(rng.integers(len(lights)))]
    turn = lanes[int(rng.choice(into.after))]
    path = np.concatenate([into.points, turn.points[1:-1], lanes[turn.after[0]].points])
    cruise = rng.uniform(3, 6) if TYPES[kind] == "cyclist" else rng.uniform(6, 13)
    return kind, _followed(path, _driven(rng, cruise, _length(into.points), turn, lights[into.arm]))


def _driven(rng: np.random.Generator, cruise: float, line: float, turn: Lane, light: np.ndarray) -> np.ndarray:
    """Returns the distance along its way of a driver at each step, who brakes before turns and red lights.

    Args:
        rng: decides where the driver starts.
        cruise: speed on a straight lane, metres per second.
        line: distance of the stop line.
        turn: lane through the crossing.
        light: state of the light at each step.
    """
    ends = turn.points[[1, -1]] - turn.points[[0, -2]]
    turned = np.ptp(np.unwrap(np.arctan2(ends[:, 1], ends[:, 0])))
    slow, out = (min(cruise, TURN_SPEED) if turned > 0.5 else cruise), line + _length(turn.points)
    distance, speed, found = rng.uniform(0, line), cruise, np.zeros(STEPS)
    speed = min(speed, np.sqrt(2 * BRAKING * (line - distance)))
    for step in range(STEPS):
        found[step] = distance
        limit = cruise if distance > out else np.hypot(slow, np.sqrt(2 * BRAKING * max(line - distance, 0)))
        if light[step] == STOP and distance < line:
            limit = min(limit, np.sqrt(2 * BRAKING * max(line - 1 - distance, 0)))
        speed = float(np.clip(min(limit, cruise), speed - 2 * BRAKING / RATE, speed + ACCELERATION / RATE))
        distance += max(speed, 0) / RATE
    return found


def _length(points: np.ndarray) -> float:
    return float(np.hypot(*np.diff(points, axis=0).T).sum())


def _followed(path: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Returns the states `[STEPS, 5]` at distances along a path; an agent that reaches its end goes straight on."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    length = np.concatenate([[0], np.cumsum(steps)])
    last = (path[-1] - path[-2]) / steps[-1]
    path, length = np.concatenate([path, path[-1:] + 300 * last]), np.append(length, length[-1] + 300)

    def at(where: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(where, length, path[:, axis]) for axis in (0, 1)], -1)

    position, ahead = at(distance), at(distance + 1.0) - at(distance - 1.0)
    speed = np.gradient(distance) * RATE
    heading = np.arctan2(ahead[:, 1], ahead[:, 0])
    velocity = speed[:, None] * _unit(heading)
    return np.concatenate([position, heading[:, None], velocity], -1)


def _most_motion_first(types: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Returns the order of the tracks: what moves most first; the vehicle that moves least records the scene."""
    moved = np.hypot(*(states[:, -1, :2] - states[:, STEPS // 3, :2]).T)
    order = np.argsort(-moved, kind="stable")
    vehicles = [n for n in order if types[n] == 0]
    own = vehicles[-1] if vehicles else order[-1]
    return np.array([*(n for n in order if n != own), own])


def _valid(rng: np.random.Generator, tracks: int, predicted: int) -> np.ndarray:
    """Returns when each track is seen: those to predict and the recording vehicle always, others for a part."""
    begin, end = rng.integers(0, STEPS // 2, tracks), rng.integers(STEPS // 2, STEPS, tracks)
    whole = (rng.random(tracks) < 0.5) | (np.arange(tracks) < predicted) | (np.arange(tracks) == tracks - 1)
    time = np.arange(STEPS)
    return whole[:, None] | ((time >= begin[:, None]) & (time < end[:, None]))
