"""Perplexity and bits per byte equal a plain computation."""

import numpy as np
import pytest

from engine.metrics import BitsPerByte, Perplexity
from tests.merging import results

LOSSES, WHERE = np.array([[0.5, 1.5], [3.0, 9.0], [1.0, 2.0]], np.float32), np.array([[1, 1], [1, 0], [1, 1]])


def test_perplexity_is_the_exponential_of_the_mean_loss():
    assert results(Perplexity.of(LOSSES, WHERE), 2)["m"] == pytest.approx(np.exp(8 / 5))


def test_bits_per_byte_divides_by_the_bytes():
    sizes = np.array([[4, 2], [1, 7], [3, 6]])
    assert results(BitsPerByte.of(LOSSES, sizes, WHERE), 2)["m"] == pytest.approx(8 / np.log(2) / 16)
    assert results(BitsPerByte.of(LOSSES, np.array([6, 8, 9])), 2)["m"] == pytest.approx(17 / np.log(2) / 23)
