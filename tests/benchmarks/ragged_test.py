import argparse

import pytest

from benchmarks import ragged


@pytest.mark.slow
def test_rows_have_the_imbalance_the_costs_and_the_waits():
    balance, cost, wait = ragged.run(argparse.Namespace(turns=1, steps=10, count=60, only="packed"))
    assert balance.median < 3 and "without Balanced" in balance.note
    assert 1 <= cost.median < 1.15 and "step of a set model, per example: " in cost.note
    assert all(0 <= share <= 100 for share in wait.values)
