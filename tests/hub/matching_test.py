"""What keeps arrays of a model from being matched with those of other weights, and the advice about it."""

import numpy as np
import pytest

from engine import hub
from engine.base.errors import CheckpointError
from tests.hub.subjects import WIDTH, Model, Net, made, numbers, there, write


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes arrays to a file."""
    return lambda arrays: write(tmp_path, arrays)


def test_weights_of_a_part_are_recognized(file):
    with pytest.raises(CheckpointError, match=r"of backbone/ without this prefix: map it with {'backbone': ''}\.$"):
        hub.load(made(Model), file(there()))


def test_missing_misshapen_and_whole_numbers_are_listed_with_the_nearest_name(file):
    arrays = there()
    arrays["convolution.weight"] = arrays.pop("conv.weight")
    arrays["h.3.up.weight"] = numbers(5, WIDTH)
    arrays |= {"embed.weight": np.ones((8, WIDTH), np.int8)}
    with pytest.raises(CheckpointError) as error:
        hub.load(made(Net), file(arrays))
    text = str(error.value)
    assert "conv/kernel: here [3, 5, 2, 4], there no conv.weight (there is convolution.weight)" in text
    assert (
        "stack/layers/gate_up/kernel: here [4, 8], which is [8, 4] there, but there is h.3.gate.weight F32 [4, 4], h.3"
        in text
    )
    assert "embed/table: here float32, there embed.weight I8 [8, 4]" in text
    assert "3 of 8 arrays here. Only there: convolution.weight F32 [4, 2, 3, 5]" in text
