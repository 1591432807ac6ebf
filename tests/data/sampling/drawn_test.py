import numpy as np
import pytest

from engine.data.batches import Batches
from engine.data.ragged.balanced import Balanced
from engine.data.sampling import drawn
from engine.data.sampling.drawn import DrawnShares
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.weighted import Weighted
from engine.data.source import ArraySource


class Counted(ArraySource):
    def costs(self):
        return self.arrays["label"]


SOURCE = Counted({"label": np.array([0] * 30 + [1] * 10)})
WEIGHTED = Weighted(SOURCE, tags="label", balance={"0 steps": "natural", "10 steps": "class"})


def shares(source, first, last):
    return DrawnShares(source, batch_size=8, seed=3, shuffle=True).metrics(first, last)


@pytest.mark.parametrize("source", [WEIGHTED, Balanced(WEIGHTED, 2)])
def test_shares_are_those_of_the_batches_of_the_steps(source):
    batches = Batches(source, 8, 3, True)
    for first, last in ((1, 5), (4, 4), (8, 30)):
        labels = np.concatenate([batches[step - 1].examples["label"] for step in range(first, last + 1)])
        expected = {"data_share/0": (labels == 0).mean(), "data_share/1": (labels == 1).mean()}
        assert shares(source, first, last) == pytest.approx(expected)
    assert shares(source, 1, 10)["data_share/1"] == 0.25
    assert shares(source, 11, 20)["data_share/1"] == 0.5


def test_mixture_has_the_shares_of_its_sources_and_of_their_tags():
    even = Weighted(SOURCE, tags="label", balance="class")
    found = shares(Mixture({"all": SOURCE, "even": even}, {"all": 3, "even": 1}), 101, 200)
    assert found["data_share/all"] == 0.75
    assert found["data_share/even"] == 0.25
    assert found["data_share/even/1"] == pytest.approx(0.125, abs=0.02)


def test_long_window_is_sampled_by_evenly_spaced_batches(monkeypatch):
    exact = shares(WEIGHTED, 1, 4000)
    monkeypatch.setattr(drawn, "MAX_EXAMPLES", 800)
    assert shares(WEIGHTED, 1, 4000) == pytest.approx(exact, abs=0.05)


def test_source_without_tags_or_with_many_has_no_shares():
    assert shares(SOURCE, 1, 5) == {}
    assert shares(Weighted(SOURCE, np.ones(40)), 1, 5) == {}
    assert shares(Weighted(SOURCE, tags=np.arange(40), balance="class"), 1, 5) == {}
