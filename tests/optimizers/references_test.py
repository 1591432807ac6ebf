"""Optimizers with those of torch and of the authors' packages, whose parameters are golden numbers.

Written by: python -m benchmarks.references --only=optimizers --golden=tests/optimizers/golden
"""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.references import optimizers

FOLDER = Path(__file__).parent / "golden" / "optimizers"


@pytest.mark.parametrize("item", optimizers.ITEMS)
def test_twenty_steps_equal_those_of_the_outside_optimizer(item):
    [row] = optimizers.compared(FOLDER, item)
    assert row.agrees, row


# Known limitation of optax, which sees one array where the layers are stacked.
@pytest.mark.parametrize(
    ("item", "differs"), [("lamb", {"stack"}), ("adafactor", {"stack", "heads"}), ("adamw", set()), ("lion", set())]
)
def test_optax_computes_norms_of_all_layers_of_a_stack_together(item, differs):
    params, gradients = optimizers.given(FOLDER)
    found = optimizers.run(item, params, gradients, one_each=False)
    errors = optimizers.errors(FOLDER, item, params, found)
    large = {key.partition("@")[0] for key, error in errors.items() if error > 0.05}
    assert large == differs
    assert all(error <= optimizers.TOLERANCE for key, error in errors.items() if key.partition("@")[0] not in differs)


def test_gradients_are_not_degenerate():
    _, gradients = optimizers.given(FOLDER)
    assert min(np.abs(x).min() for x in gradients.values()) > 1e-5
