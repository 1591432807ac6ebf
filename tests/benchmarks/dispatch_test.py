"""Dispatches of several steps train as single steps and as the bare loop do, and the row compares their times."""

import numpy as np
import pytest

from benchmarks import dispatch
from benchmarks.dispatch import BLOCK, Times


@pytest.mark.slow
def test_all_loops_have_the_same_losses_at_every_step():
    times = dispatch.measure("16-8-10", 1, 0, 1, ks=(1, 32), log__every="1 step", log__tensorboard=False)
    assert list(times.bare_losses) == list(range(1, 2 * BLOCK + 1))
    for losses in times.losses.values():
        assert list(losses) == list(times.bare_losses)
        np.testing.assert_allclose(list(losses.values()), list(times.bare_losses.values()), rtol=0, atol=1e-5)
    assert {len(values) for values in (times.bare, times.computation, *times.engine.values())} == {1}


@pytest.mark.parametrize(("computation", "target"), [(4.0, "at least 1.5: met"), (6.0, "at least 1: met")])
def test_row_is_the_gain_over_single_steps(computation, target):
    engine = {1: [12.0, 9.0, 6.0], 8: [6.0, 6.0, 6.0], 32: [4.0, 3.0, 3.0]}
    row = dispatch.row("16-8-10", Times([10.0] * 3, [computation] * 3, engine, {}, {}))
    assert row.values == (3.0, 3.0, 2.0)
    assert f"K = 8: 1.50; bare step 0.01 ms, host {100 - 10 * computation:.0f} %" in row.note
    assert row.target == target
