"""Arrays of motion forecasting from a scenario: agents and polylines around each target, in the frame of the target.

An example is a scenario with a fixed number of targets, the tracks to predict. The frame of a target has its origin at
the position of the target at the current step, and the x axis along its heading. All sizes are fixed, with masks.
"""

import dataclasses

import numpy as np

KINDS = ("vehicle", "pedestrian", "cyclist", "motorcyclist", "bus", "other")
"""Kinds of agents, of both datasets."""
LINES = ("lane", "line", "edge", "crossing", "other")
"""Kinds of polylines, of both datasets."""
LIGHTS = ("none", "stop", "caution", "go")
AGENT_FEATURES, LINE_FEATURES = 17, 14  # of a point
POINTS = 20  # points of a polyline
SCALE = 20.0  # metres: positions are divided by it
FAST = 10.0  # metres per second: speeds are divided by it
AHEAD = 2.0  # seconds: polylines are those around the place where the target would be then


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of an example.

    Attributes:
        targets: tracks to predict, at most.
        agents: agents around a target, itself included.
        lines: polylines around a target.
        history: observed steps of an agent.
        stride: steps of the scenario between two of these; the last one is the current step.
        future: steps to predict.
        others: boxes of other tracks, for overlaps; 0 leaves them out.
    """

    targets: int
    agents: int
    lines: int
    history: int
    stride: int
    future: int
    others: int = 0


@dataclasses.dataclass
class Scenario:
    """A scenario of either dataset, in metres.

    Attributes:
        position: `[tracks, time, 2]`, float64; heading `[tracks, time]` in radians, velocity `[tracks, time, 2]` in
            metres per second, size `[tracks, time, 2]`: length and width, 0 if unknown; valid bool `[tracks, time]`.
        kind: index into KINDS, `[tracks]`.
        targets: tracks to predict, the most important first.
        current: index of the last observed step.
        lines: polylines `[lines, points, 2]`, float64; line_valid bool `[lines, points]`; line_kind, index into
            LINES, line_light, index into LIGHTS at the current step, and line_junction or speed limit, `[lines]`.
    """

    position: np.ndarray
    heading: np.ndarray
    velocity: np.ndarray
    size: np.ndarray
    valid: np.ndarray
    kind: np.ndarray
    targets: np.ndarray
    current: int
    lines: np.ndarray
    line_valid: np.ndarray
    line_kind: np.ndarray
    line_light: np.ndarray
    line_rest: np.ndarray


def example(scenario: Scenario, sizes: Sizes) -> dict[str, np.ndarray]:
    """Returns the arrays of an example.

    - `agents` float32 `[targets, agents, history, AGENT_FEATURES]`, the target first, then the nearest ones, and
      `agents_valid` bool without the features.
    - `lines` float32 `[targets, lines, POINTS, LINE_FEATURES]`, and `lines_valid` likewise.
    - `future` float32 `[targets, future, 2]` in metres, and `future_valid` bool `[targets, future]`: all False in a
      split without a future.
    - `velocity` float32 `[targets, 2]`, metres per second. All of these are in the frame of the target.
    - `target` bool `[targets]`: False for padding. A target is valid at the current step.
    - `frame` float32 `[targets, 3]`: x, y and heading of the frames, relative to `origin`, float64 `[2]`.

    With `others`, in the frame of `origin`, for `metrics.WaymoMotion`:

    - `states` float32 `[targets, 1 + future, 7]`: x, y, length, width, heading, velocity along x and y, from the
      current step on, and `states_valid` bool `[targets, 1 + future]`.
    - `boxes` float32 `[others, future // 5, 5]`: x, y, length, width, heading of tracks at every fifth step of the
      future, the nearest to a target first, and `boxes_valid` bool `[others, future // 5]`. `own` int32 `[targets]`:
      index of the target in `boxes`, -1 for none.
    """
    chosen = present(scenario)[: sizes.targets]
    origin = scenario.position[chosen[0], scenario.current] if len(chosen) else np.zeros(2)
    frame = np.zeros((sizes.targets, 3), np.float32)
    frame[: len(chosen), :2] = scenario.position[chosen, scenario.current] - origin
    frame[: len(chosen), 2] = scenario.heading[chosen, scenario.current]
    found = _empty(sizes)
    for row, target in enumerate(chosen.tolist()):
        for name, x in _around(scenario, sizes, target).items():
            found[name][(row, *map(slice, x.shape))] = x
    found |= {"target": np.arange(sizes.targets) < len(chosen), "frame": frame, "origin": origin}
    return found | (_truth(scenario, sizes, chosen, origin) if sizes.others else {})


def present(scenario: Scenario) -> np.ndarray:
    """Returns the targets that are valid at the current step, in their order."""
    return scenario.targets[scenario.valid[scenario.targets, scenario.current]]


def _empty(sizes: Sizes) -> dict[str, np.ndarray]:
    agents, lines = (sizes.targets, sizes.agents, sizes.history), (sizes.targets, sizes.lines, POINTS)
    future = (sizes.targets, sizes.future)
    return {
        "agents": np.zeros((*agents, AGENT_FEATURES), np.float32),
        "agents_valid": np.zeros(agents, bool),
        "lines": np.zeros((*lines, LINE_FEATURES), np.float32),
        "lines_valid": np.zeros(lines, bool),
        "future": np.zeros((*future, 2), np.float32),
        "future_valid": np.zeros(future, bool),
        "velocity": np.zeros((sizes.targets, 2), np.float32),
    }


def _around(scenario: Scenario, sizes: Sizes, target: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one target, without padding."""
    now, turn = scenario.current, scenario.heading[target, scenario.current]
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s], [s, c]])

    def here(points: np.ndarray) -> np.ndarray:
        return (points - scenario.position[target, now]) @ rotation

    distance = np.hypot(*here(scenario.position[:, now]).T)
    distance[target] = -1
    order = np.argsort(np.where(scenario.valid[:, now], distance, np.inf), kind="stable")
    agents = order[: min(sizes.agents, scenario.valid[:, now].sum())]
    steps = np.arange(now - (sizes.history - 1) * sizes.stride, now + 1, sizes.stride)
    seen = np.ix_(agents, steps)
    velocity = scenario.velocity[target, now] @ rotation
    lines = _lines(scenario, sizes, here, AHEAD * velocity)
    future = slice(now + 1, now + 1 + sizes.future)
    valid = scenario.valid[target, future]
    return {
        "agents": _agents(scenario, seen, here(scenario.position[seen]), scenario.velocity[seen] @ rotation, turn),
        "agents_valid": scenario.valid[seen],
        "lines": lines[0],
        "lines_valid": lines[1],
        "future": here(scenario.position[target, future]) * valid[:, None],
        "future_valid": valid,
        "velocity": velocity,
    }


def _agents(scenario: Scenario, seen, position: np.ndarray, velocity: np.ndarray, turn: float) -> np.ndarray:
    """Returns the features of agents, `[agents, history, AGENT_FEATURES]`."""
    heading, kind = scenario.heading[seen] - turn, scenario.kind[seen[0][:, 0]]
    found = np.zeros((*heading.shape, AGENT_FEATURES))
    found[..., 0:2], found[..., 2], found[..., 3] = position / SCALE, np.cos(heading), np.sin(heading)
    found[..., 4:6], found[..., 6], found[..., 7] = velocity / FAST, (seen[1] - scenario.current) / 10, 1
    found[np.arange(len(kind)), :, 8 + kind] = 1
    found[..., 14:16], found[0, :, 16] = scenario.size[seen] / 5, 1
    return np.where(scenario.valid[seen][..., None], found, 0)


def _lines(scenario: Scenario, sizes: Sizes, here, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of the polylines that are nearest to a place, and which of their points exist."""
    points, valid = here(scenario.lines), scenario.line_valid
    far = np.hypot(*np.moveaxis(points - ahead, -1, 0))
    order = np.argsort(np.where(valid, far, np.inf).min(-1), kind="stable")[: sizes.lines]
    points, valid, rows = points[order], valid[order], np.arange(len(order))
    found = np.zeros((*valid.shape, LINE_FEATURES))
    found[..., 0:2] = points / SCALE
    found[:, :-1, 2:4] = np.where(valid[:, 1:, None], np.diff(points, axis=1), 0)
    found[rows, :, 4 + scenario.line_kind[order]] = 1
    found[rows, :, 9 + scenario.line_light[order]] = 1
    found[..., 13] = scenario.line_rest[order, None]
    return np.where(valid[..., None], found, 0), valid


def _truth(scenario: Scenario, sizes: Sizes, chosen: np.ndarray, origin: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the entries of `example` for the metrics of Waymo."""
    now, every = scenario.current, sizes.future // 5
    found = {
        "states": np.zeros((sizes.targets, 1 + sizes.future, 7), np.float32),
        "states_valid": np.zeros((sizes.targets, 1 + sizes.future), bool),
        "boxes": np.zeros((sizes.others, every, 5), np.float32),
        "boxes_valid": np.zeros((sizes.others, every), bool),
        "own": np.full(sizes.targets, -1, np.int32),
    }
    own = scenario.position[chosen, now]
    apart = np.hypot(*np.moveaxis(scenario.position[:, now, None] - own, -1, 0)).min(-1, initial=np.inf)
    order = np.argsort(np.where(scenario.valid[:, now], apart, np.inf), kind="stable")
    order = order[: min(sizes.others, scenario.valid[:, now].sum())]
    place = scenario.position - origin
    box = np.concatenate([place, scenario.size, scenario.heading[..., None]], -1)
    states = np.concatenate([box, scenario.velocity], -1)[chosen, now : now + 1 + sizes.future]
    later = np.arange(now + 5, min(now + 1 + sizes.future, box.shape[1]), 5)
    found["states"][: len(chosen), : states.shape[1]] = states
    found["states_valid"][: len(chosen), : states.shape[1]] = scenario.valid[chosen, now : now + 1 + sizes.future]
    found["boxes"][: len(order), : len(later)] = box[np.ix_(order, later)]
    found["boxes_valid"][: len(order), : len(later)] = scenario.valid[np.ix_(order, later)]
    index = {track: number for number, track in enumerate(order.tolist())}
    found["own"][: len(chosen)] = [index.get(track, -1) for track in chosen.tolist()]
    return found
