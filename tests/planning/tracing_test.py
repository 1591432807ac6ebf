import pytest

from tests.planning import tiny


def test_work_is_linear_in_the_rows_and_counts_the_flops_of_a_step():
    traces = tiny.traces()
    four, twelve = (traces.work("none", "float32", rows) for rows in (4, 12))
    assert twelve.flops == pytest.approx(3 * four.flops)
    assert twelve.flops == pytest.approx(12 * traces.flops, rel=0.01)


def test_peak_of_few_rows_is_the_gradients_and_of_many_the_activations():
    traces = tiny.traces()
    start, slope = traces.peak("none", "float32", 4096)
    assert slope > 3 * 64 * 4  # two hidden layers and the input, float32
    exact = traces._at("none", "float32", 4096).peak
    assert start + slope * 4096 == pytest.approx(exact, rel=0.05)
    few, none = traces.peak("none", "float32", 1)
    assert few + none >= 4 * tiny.numbers()
