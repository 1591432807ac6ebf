"""A recording of traffic made without SUMO: agents drive along a cross of two roads with lights."""

import numpy as np

from convoy_zoo.models.traffic.simulation import DURATION, POINTS, RATE, SIZES, WARM_UP, Recording

STEPS = (DURATION - WARM_UP) * RATE


def recording(agents: int = 20, seed: tuple[int, ...] = (0,), steps: int = STEPS) -> Recording:
    """Returns a recording of agents that drive straight or turn at the centre of a cross, and some that stand."""
    rng = np.random.default_rng(seed)
    angles = np.array([0, 1.4, 3.3, 4.8])
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    arms = [np.linspace(0, 120, 4 * (POINTS - 1) + 1)[:, None] * direction for direction in directions]
    pieces = [arm[n * (POINTS - 1) : (n + 1) * (POINTS - 1) + 1] for arm in arms for n in range(4)]
    following = np.full((16, 4), -1, np.int32)
    following[[n for n in range(16) if n % 4 < 3], 0] = [n + 1 for n in range(16) if n % 4 < 3]
    kind = rng.choice(len(SIZES), agents)
    time = np.arange(steps) / RATE
    start, begin, end = rng.uniform(-100, 0, agents), rng.uniform(0, 60, agents), rng.uniform(60, 240, agents)
    speed = rng.uniform(0, 1.2, agents) * (rng.random(agents) < 0.8)
    along = start[:, None] + speed[:, None] * time
    first, second = directions[rng.integers(4, size=(2, agents))]
    leg = along[..., None] < 0
    xy = np.where(leg, first[:, None], second[:, None]) * along[..., None]
    ahead = np.where(leg, first[:, None], second[:, None])
    heading = np.arctan2(ahead[..., 1], ahead[..., 0])
    state = np.concatenate([xy, heading[..., None], np.broadcast_to(speed[:, None, None], (*heading.shape, 1))], -1)
    present = (time >= begin[:, None]) & (time < end[:, None])
    return Recording(
        type=np.array([0, 0, 1, 2, 3, 4], np.int8)[kind],
        size=np.array(SIZES, np.float32)[kind],
        state=np.where(present[..., None], state, np.nan).astype(np.float32),
        points=np.array(pieces, np.float32),
        kind=np.array([1, 0, 0, 0] * 4, np.int8),
        width=np.full(16, 3.2, np.float32),
        limit=np.full(16, 13.89, np.float32),
        lane=np.arange(16, dtype=np.int32) // 4,
        next=following,
        signal_piece=np.array([0, 4, 8, 12], np.int32),
        signal_state=rng.integers(0, 3, (4, steps)).astype(np.int8),
    )
