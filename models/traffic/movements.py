"""Motion tokens: the movement of an agent in half a second, chosen from a vocabulary that k-means finds.

A movement is `[3]`: metres ahead, metres to the left, and the change of heading in radians, in the frame of the agent
at its start. A pose is `[3]`: x, y and heading. Tracks become tokens step by step: each token leads from the pose that
the tokens before it have reached as close as possible to the next recorded pose, so errors do not add up (Philion et
al. 2024, Trajeglish, arXiv:2312.04535).
"""

import jax
import jax.numpy as jnp
import numpy as np

LEVER = 2.0  # metres; a change of heading counts as the displacement of a point so far from the centre
GRID = 0.05  # metres; movements in one cell are one point of k-means, weighted by their number


def k_means(movements: np.ndarray, count: int, seed: int = 0, rounds: int = 20) -> np.ndarray:
    """Returns a vocabulary of movements, float32 `[count, 3]`.

    Token 0 is standing still. It is exact: most agents never move back, so they could not correct a slow drift.

    Args:
        movements: `[movements, 3]`; there are fewer tokens if fewer than `count` of them differ.
        count: number of tokens.
        seed: seed of the first centres, which k-means++ draws (Arthur and Vassilvitskii 2007).
        rounds: rounds of Lloyd's algorithm.
    """
    cells = np.round(movements * [1, 1, LEVER] / GRID).astype(np.int64)
    points, weight = np.unique(cells[(cells != 0).any(-1)], axis=0, return_counts=True)
    points, rng = points * GRID, np.random.default_rng(seed)
    centres, distance = np.zeros((1, 3)), (points**2).sum(-1)
    while len(centres) < min(count, len(points) + 1):
        share = weight * distance
        new = points[rng.choice(len(points), p=share / share.sum())]
        centres = np.concatenate([centres, new[None]])
        distance = np.minimum(distance, ((points - new) ** 2).sum(-1))
    for _ in range(rounds):
        nearest = ((centres**2).sum(-1) - 2 * points @ centres.T).argmin(-1)
        sizes = np.bincount(nearest, weight, len(centres))
        sums = np.stack([np.bincount(nearest, weight * points[:, k], len(centres)) for k in range(3)], -1)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        centres[0] = 0
    return (centres / [1, 1, LEVER]).astype(np.float32)


def move(pose, movement):
    """Returns the poses `[..., 3]` after movements `[..., 3]`."""
    x, y, heading = jnp.moveaxis(pose, -1, 0)
    ahead, left, turn = jnp.moveaxis(movement, -1, 0)
    c, s = jnp.cos(heading), jnp.sin(heading)
    return jnp.stack([x + c * ahead - s * left, y + s * ahead + c * left, heading + turn], -1)


def movement(start, end):
    """Returns the movements `[..., 3]` between two poses `[..., 3]`: the inverse of `move`."""
    ahead, left = in_frame(end[..., :2] - start[..., :2], start[..., 2])
    return jnp.stack([ahead, left, wrap(end[..., 2] - start[..., 2])], -1)


def in_frame(offset, heading):
    """Returns how far offsets `[..., 2]` are ahead and to the left, each `[...]`, for headings `[...]`."""
    c, s = jnp.cos(heading), jnp.sin(heading)
    return c * offset[..., 0] + s * offset[..., 1], c * offset[..., 1] - s * offset[..., 0]


def wrap(angle):
    """Returns angles in radians, from -pi to pi."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def tokenise(pose, valid, vocabulary, noise=None):
    """Returns the tokens of tracks, and the poses that they reach.

    Args:
        pose: recorded poses `[batch, agents, steps, 3]`.
        valid: bool `[batch, agents, steps]`.
        vocabulary: `[tokens, 3]`.
        noise: keys `[batch]` and a standard deviation in metres. With noise, the poses are those of tokens near the
            best one, and the next token leads back to the track: the model learns to correct its own errors.

    Returns:
        tokens: the best token from each reached pose to the next recorded one, `[batch, agents, steps - 1]`.
        reached: `[batch, agents, steps, 3]`; the recorded pose where a track begins.
        moved: the token that led to each reached pose, `[batch, agents, steps]`; the number of tokens where a track
            begins.
    """
    scale = jnp.array([1, 1, LEVER])
    vocabulary = jnp.asarray(vocabulary)
    norms = ((vocabulary * scale) ** 2).sum(-1)

    def nearest(wanted):  # [batch, agents, 3]
        return (norms - 2 * (wanted * scale) @ (vocabulary * scale).T).argmin(-1)

    def step(here, inputs):
        after, known, t = inputs
        wanted = movement(here, after)
        token = chosen = nearest(wanted)
        if noise is not None:
            keys, deviation = noise
            shape = wanted.shape[1:]
            errors = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)
            chosen = nearest(wanted + deviation * errors / scale)
        reached = jnp.where(known[..., None], move(here, vocabulary[chosen]), after)
        return reached, (token, reached, jnp.where(known, chosen, len(vocabulary)))

    known = jnp.moveaxis(valid[..., 1:] & valid[..., :-1], -1, 0)
    inputs = jnp.moveaxis(pose[:, :, 1:], 2, 0), known, jnp.arange(len(known))
    _, (tokens, reached, moved) = jax.lax.scan(step, pose[:, :, 0], inputs)
    reached = jnp.concatenate([pose[:, :, :1], jnp.moveaxis(reached, 0, 2)], axis=2)
    begins = jnp.full_like(pose[:, :, :1, 0], len(vocabulary), jnp.int32)
    return jnp.moveaxis(tokens, 0, 2), reached, jnp.concatenate([begins, jnp.moveaxis(moved, 0, 2)], axis=2)
