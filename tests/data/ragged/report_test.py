import numpy as np
import pytest

from engine.data.ragged.balanced import Balanced
from engine.data.ragged.packing import Packed
from engine.data.ragged.padded import Bucketed, Padded
from engine.data.ragged.report import report
from engine.data.source import ArraySource, BaseSource
from tests.data.scenes import FIELDS, Scenes

SIZES = np.clip(np.random.default_rng(0).lognormal(np.log(15), 1.0, 600).round(), 3, 300).astype(int).tolist()


def found(source, ranks=1):
    return report(source, batch_size=24, seed=0, shuffle=True, ranks=ranks)


def test_padding_is_that_of_the_batches_of_the_run():
    padded = found(Padded(Scenes(SIZES), 300, FIELDS))
    assert padded is not None and padded.padding == pytest.approx(1 - np.mean(SIZES) / 300)
    assert (padded.shares, padded.names, padded.metrics) == ((1.0,), (), {"data_padding": padded.padding})
    assert str(padded) == f"{padded.padding:.1%} of the batches is padding"
    bucketed, packed = (
        found(Bucketed(Scenes(SIZES), [20, 60, 300], FIELDS)),
        found(Packed(Scenes(SIZES), 300, fields=FIELDS)),
    )
    assert bucketed is not None and packed is not None
    assert packed.padding < 0.03 < bucketed.padding < 0.7 < padded.padding
    expected = np.bincount(np.searchsorted([20, 60, 300], SIZES)) / len(SIZES)
    assert np.allclose(bucketed.shares, expected, atol=0.05)
    assert "; lengths: 20 (" in str(bucketed) and "60 (" in str(bucketed)


def test_imbalance_is_the_excess_of_the_most_expensive_rank():
    source = Padded(Scenes(SIZES), 300, FIELDS)
    plain, balanced = found(source, 3), found(Balanced(source, 3), 3)
    assert plain is not None and balanced is not None and plain.imbalance is not None and balanced.imbalance is not None
    assert balanced.imbalance < 0.1 < 0.2 < plain.imbalance
    assert f"the most expensive of 3 ranks costs {plain.imbalance:.1%} more than their mean" in str(plain)


def test_sources_of_unknown_lengths_have_no_report():
    class Unmeasured(BaseSource):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError

    assert found(Padded(Unmeasured(), 300, FIELDS)) is None  # which would have to read all examples
    assert found(ArraySource({"x": np.zeros(30)})) is None
