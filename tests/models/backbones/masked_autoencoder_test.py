"""Which blocks of images are hidden, and what is predicted of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convoy_zoo.models.backbones.masked_autoencoder import hidden_blocks, patches, standardised
from engine import TaskError

CELLS, BLOCK = (6, 8), (2, 4)


def test_each_row_hides_whole_blocks_which_depend_on_its_key_only():
    keys = jax.random.split(jax.random.key(0), 16)
    found = np.asarray(hidden_blocks(keys, CELLS, BLOCK, 0.5))
    blocks = found.reshape(16, 3, 2, 2, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert (found.sum((1, 2)) == 3 * 8).all()
    assert len(np.unique(found, axis=0)) > 4
    np.testing.assert_array_equal(found[3:5], hidden_blocks(keys[3:5], CELLS, BLOCK, 0.5))


def test_each_patch_has_its_pixels():
    images = np.random.default_rng(0).random((2, 3, 8, 12, 3))
    found = np.asarray(patches(jnp.asarray(images), (4, 2)))
    assert found.shape == (2, 3, 2, 6, 24)
    np.testing.assert_allclose(found[1, 2, 1, 3], images[1, 2, 4:8, 6:8].ravel(), rtol=1e-6)


def test_values_are_standardised_but_the_noise_of_an_even_patch_is_not_magnified():
    values = np.stack([np.linspace(0, 1, 24), 0.5 + 0.001 * np.linspace(-1, 1, 24)])
    strong, even = np.asarray(standardised(jnp.asarray(values), least=0.1))
    assert abs(strong.mean()) < 1e-6 and strong.std() == pytest.approx(1, rel=1e-5)
    assert np.abs(even).max() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("block", "share", "sentence"),
    [
        ((4, 4), 0.5, r"block = \(4, 4\) does not divide the grid of \(6, 8\) patches"),
        (BLOCK, 0.01, r"share = 0\.01 hides 0 of 6 blocks"),
        (BLOCK, 1.0, r"share = 1\.0 hides 6 of 6 blocks"),
    ],
)
def test_blocks_that_hide_nothing_or_all_or_part_of_a_block_are_refused(block, share, sentence):
    with pytest.raises(TaskError, match=sentence):
        hidden_blocks(jax.random.split(jax.random.key(0), 2), CELLS, block, share)
