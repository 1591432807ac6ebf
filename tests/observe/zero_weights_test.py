"""Warnings about batches, and whole epochs, in which every weight of the loss is 0."""

import numpy as np

from engine.observe.zero_weights import ZeroWeights


def messages(weights, steps_per_epoch=100, k=1):
    found = []
    check = ZeroWeights(steps_per_epoch, found.append)
    for first in range(0, len(weights), k):
        part = np.asarray(weights[first : first + k], np.float32)
        check.add_results(first, np.stack([np.zeros_like(part), part], -1)[:, None])
    return found


def test_no_warning_while_some_example_has_weight():
    assert messages([3, 0.5, 1e-9, 16]) == []


def test_first_step_without_weight_is_named_and_later_ones_are_counted():
    for k in (1, 4):
        found = messages([1, 0, 1, 1, 0, 0, 1, 0, 0, 0], k=k)
        assert [text.split(":")[1] for text in found] == [" step 2", " step 5", " step 8"]
        assert found[0].startswith("warning: step 2: every weight of the loss is 0 in this batch")
        assert found[0].endswith("(1 such step so far)") and found[2].endswith("(4 such steps so far)")


def test_epoch_without_weight_is_said_once():
    found = messages([1, 0, 0, 0, 0, 0], steps_per_epoch=4)
    assert [text for text in found if "whole epoch" in text] == [
        "warning: step 5: every weight of the loss was 0 for a whole epoch, so the model learns nothing. "
        "Check the mask (where) that the loss passes to Loss.of."
    ]
    assert "whole epoch" not in str(messages([0, 0, 0, 1, 0, 0], steps_per_epoch=4))
