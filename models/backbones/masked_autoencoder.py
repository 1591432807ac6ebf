"""Masked image modelling as in SimMIM (Xie et al. 2022, arXiv:2111.09886), for any backbone.

Random blocks of an image are hidden, and the model predicts the pixels of the hidden patches. It needs no labels.
"""

import jax
import jax.numpy as jnp

from engine import TaskError


def patches(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns the values of each patch, `[..., rows / size[0], columns / size[1], values]`.

    Args:
        images: `[..., rows, columns, colors]`.
        size: rows and columns of a patch, of which an image has a whole number.
    """
    *leading, rows, columns, colors = images.shape
    shape = (*leading, rows // size[0], size[0], columns // size[1], size[1], colors)
    return jnp.swapaxes(images.reshape(shape), -4, -3).reshape(*shape[:-4], shape[-3], -1)


def standardised(values: jax.Array, least: float = 0.1) -> jax.Array:
    """Returns the values of each patch with mean 0 and deviation 1, in float32 (He et al. 2022, arXiv:2111.06377).

    Args:
        values: `[..., values]`.
        least: the smallest deviation, so that the noise of an even patch is not magnified.
    """
    values = values.astype(jnp.float32)
    deviation = jnp.maximum(values.std(-1, keepdims=True), least)
    return (values - values.mean(-1, keepdims=True)) / deviation


def hidden_blocks(rng: jax.Array, cells: tuple[int, int], block: tuple[int, int], share: float) -> jax.Array:
    """Returns which cells of a grid are hidden, bool `[batch, *cells]`: in each row equally many blocks.

    Args:
        rng: keys `[batch]`; the blocks of a row depend on its key only.
        cells: rows and columns of the grid.
        block: rows and columns of a block, of which the grid has a whole number.
        share: of the blocks that is hidden.

    Raises:
        TaskError: the grid is not a whole number of blocks, or `share` does not leave a hidden and a visible block.
    """
    if cells[0] % block[0] or cells[1] % block[1]:
        raise TaskError(f"block = {block} does not divide the grid of {cells} patches. Use a block that does.")
    shape = (cells[0] // block[0], cells[1] // block[1])
    count = shape[0] * shape[1]
    hidden = round(share * count)
    if not 0 < hidden < count:
        raise TaskError(f"share = {share} hides {hidden} of {count} blocks. Use one that hides some and shows some.")
    order = jax.vmap(lambda key: jax.random.permutation(key, count))(rng)  # [batch, blocks]
    taken = (order < hidden).reshape(-1, *shape)
    return jnp.repeat(jnp.repeat(taken, block[0], axis=1), block[1], axis=2)
