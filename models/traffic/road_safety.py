"""Collisions and departures from the road in simulated traffic.

A collision is an overlap of the boxes of two agents. An agent has left the road if its centre is outside of all lanes.
"""

import jax.numpy as jnp


def collisions(pose, size, valid):
    """Returns which agents overlap another one, bool `[..., agents]`.

    Two boxes are apart if the projections on an axis of one of them are (separating axes).

    Args:
        pose: x, y and heading of the centres, `[..., agents, 3]`.
        size: length and width, `[..., agents, 2]`.
        valid: bool `[..., agents]`.
    """
    offset = pose[..., None, :, :2] - pose[..., :, None, :2]  # from the first agent to the second
    heading = pose[..., 2]
    turn = heading[..., None, :] - heading[..., :, None]
    c, s = jnp.abs(jnp.cos(turn)), jnp.abs(jnp.sin(turn))
    half = size / 2
    length, width = half[..., None, :, 0], half[..., None, :, 1]  # those of the second agent
    along, across = jnp.cos(heading)[..., None], jnp.sin(heading)[..., None]
    ahead = jnp.abs(offset[..., 0] * along + offset[..., 1] * across)  # in the frame of the first agent
    left = jnp.abs(offset[..., 1] * along - offset[..., 0] * across)
    meet = (ahead < half[..., :, None, 0] + length * c + width * s) & (
        left < half[..., :, None, 1] + length * s + width * c
    )
    meet &= jnp.swapaxes(meet, -1, -2)  # on the axes of both agents
    count = pose.shape[-2]
    meet &= valid[..., None, :] & valid[..., :, None] & ~jnp.eye(count, dtype=bool)
    return meet.any(-1)


def off_road(position, points, width, road):
    """Returns which positions are outside of all lanes, bool `[..., agents]`.

    Args:
        position: `[..., agents, 2]`.
        points: points of the centre lines, `[..., pieces, points, 2]`.
        width: width of the lanes, `[..., pieces]`.
        road: whether a piece counts, bool `[..., pieces]`.
    """
    segments = jnp.stack([points[..., :-1, :], points[..., 1:, :]], -2)[..., None, :, :, :, :]
    offset, _ = nearest(position[..., :, None, :], segments)
    distance = jnp.hypot(offset[..., 0], offset[..., 1])  # [..., agents, pieces]
    return ~((distance <= width[..., None, :] / 2) & road[..., None, :]).any(-1)


def nearest(position, segments):
    """Returns the offset `[..., 2]` to the nearest point of a line, and the heading `[...]` of the line there.

    Args:
        position: `[..., 2]`.
        segments: the ends of the segments of each line, `[..., segments, 2, 2]`.
    """
    offset, along = to_line(position[..., None, :], segments)
    best = (offset**2).sum(-1).argmin(-1)[..., None, None]
    along = jnp.take_along_axis(jnp.broadcast_to(along, offset.shape), best, axis=-2)[..., 0, :]
    offset = jnp.take_along_axis(offset, best, axis=-2)[..., 0, :]
    return offset, jnp.arctan2(along[..., 1], along[..., 0])


def to_line(position, ends):
    """Returns the offset `[..., 2]` from positions to the nearest point between two ends `[..., 2, 2]`.

    The second result is the line from the first end to the second.
    """
    start, along = ends[..., 0, :], ends[..., 1, :] - ends[..., 0, :]
    share = ((position - start) * along).sum(-1) / jnp.maximum((along**2).sum(-1), 1e-6)
    return start + share.clip(0, 1)[..., None] * along - position, along
