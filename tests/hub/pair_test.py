"""Pairs of inputs and an output of the other program: what a difference is, and pairs that do not fit."""

import numpy as np
import pytest
from flax import nnx

from engine.base.errors import CheckpointError
from engine.hub.matching import variables_of
from engine.hub.pair import Pair
from tests.hub.subjects import numbers


class Doubles(nnx.Module):
    """Doubles its input with a kernel."""

    def __init__(self):
        self.kernel = nnx.Param(2 * np.eye(3, dtype=np.float32))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x, twice=None):
        return (x, x) if twice is not None else self.dropout(x @ self.kernel[...])


@pytest.fixture
def difference(tmp_path):
    """Returns a function from the arrays of a file to the difference of Doubles."""

    def measured(**arrays):
        np.savez(tmp_path / "p.npz", **arrays)
        module = Doubles()
        values = {name: variable.get_value() for name, variable in variables_of(module).items()}
        return Pair(tmp_path / "p.npz", "--check").measure(module)(values)

    return measured


def test_difference_is_relative_to_the_largest_number(difference):
    x = numbers(2, 3)
    assert difference(x=x, output=2 * x) == 0
    moved = 2 * x
    moved[0, 0] += 0.01 * np.abs(moved).max()
    assert difference(x=x, output=moved) == pytest.approx(0.01, rel=0.05)
    assert difference(x=x * np.nan, output=2 * x) == np.inf
    assert difference(x=x, output=0 * x) == np.inf and difference(x=0 * x, output=0 * x) == 0


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": numbers(2, 3)}, "found the arrays x. It must be"),
        ({"y": numbers(2, 3), "output": numbers(2, 3)}, "the model has no argument y. It has: x, twice."),
        ({"x": numbers(2, 3), "output": numbers(3)}, r"an array of shape \[2, 3\], but output has the shape \[3\]"),
        ({"x": numbers(3), "twice": numbers(1), "output": numbers(3)}, "returns a tuple, but output has the shape"),
    ],
)
def test_a_pair_that_does_not_fit_is_one_sentence(difference, arrays, words):
    with pytest.raises(CheckpointError, match=words):
        difference(**arrays)


@pytest.mark.parametrize("content", [b"", b"PK", b"no npz"])
def test_another_file_is_one_sentence(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"p\.npz: cannot be read"):
        Pair(tmp_path / "p.npz", "--check")
