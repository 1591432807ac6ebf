import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.duration import Duration
from engine.base.errors import ConfigError, DataError
from engine.config.schema import Train
from engine.data.adapt import follows_run, for_run
from engine.data.batches import Batches
from engine.data.ragged.balanced import Balanced
from engine.data.ragged.padded import Padded
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.share_schedule import ShareSchedule, Times
from engine.data.sampling.weighted import Weighted
from engine.data.source import ArraySource
from tests import properties
from tests.data.scenes import FIELDS, Scenes

SHARES = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any).map(lambda values: np.array(values, float))


@st.composite
def schedules(draw):
    """Returns points, `interpolate`, and the length of an epoch."""
    gaps = draw(st.lists(st.integers(1, 400), max_size=3))
    points = [(at, draw(SHARES)) for at in np.cumsum([0, *gaps]).tolist()]
    return points, draw(st.booleans()), draw(st.integers(1, 60))


@given(schedules(), st.integers(0, 2000), st.integers(1, 300))
@properties.examples(60)
def test_each_position_is_the_next_one_of_its_group_from_any_start(schedule, start, count):
    plan = ShareSchedule(*schedule, seed=5)
    groups, ranks = plan.locate(np.arange(3000))
    later = plan.locate(np.arange(start, start + count))
    np.testing.assert_equal(later, (groups[start : start + count], ranks[start : start + count]))
    for group in range(3):
        own = ranks[groups == group]
        assert len(set(own.tolist())) == len(own)
        # A block is in random order, so the ranks have gaps only within the last one, of at most 60 positions.
        assert own.max(initial=0) < len(own) + 60
    for (at, shares), end in zip(schedule[0], [*(at for at, _ in schedule[0][1:]), 3000], strict=True):
        if not schedule[1]:
            assert (shares[groups[at:end]] > 0).all(), "a group without a share is not drawn"


@given(SHARES, st.integers(20, 200), st.integers(0, 20))
@properties.examples(60)
def test_each_epoch_has_the_share_of_each_group_within_one(shares, epoch, number):
    groups, _ = ShareSchedule([(0, shares)], False, epoch, 0).locate(np.arange(epoch * number, epoch * (number + 1)))
    counts = np.bincount(groups, minlength=3)
    assert np.abs(counts - epoch * shares / shares.sum()).max() < 2
    many, _ = ShareSchedule([(0, shares)], False, epoch, 0).locate(np.arange(epoch * 50))
    assert np.abs(np.bincount(many, minlength=3) - 50 * epoch * shares / shares.sum()).max() < 2


def test_interpolated_shares_grow_linearly_from_point_to_point():
    plan = ShareSchedule([(0, np.array([1.0, 0])), (10_000, np.array([1.0, 1]))], True, 5000, 0)
    groups, _ = plan.locate(np.arange(20_000))
    drawn = groups.reshape(-1, 1000).mean(axis=1)
    np.testing.assert_allclose(drawn[:10], np.arange(0.025, 0.5, 0.05), atol=0.01)
    np.testing.assert_allclose(drawn[10:15].mean(), 0.5, atol=0.001)


def test_thousand_groups_with_long_tail_keep_their_shares():
    shares = 1 / np.arange(1, 1001)
    groups, ranks = ShareSchedule([(0, shares)], False, 20_000, 0).locate(np.arange(200_000))
    assert np.abs(np.bincount(groups, minlength=1000) - 200_000 * shares / shares.sum()).max() < 2
    assert ranks.min() == 0


def test_schedule_equals_stored_numbers():
    # Resumed runs rely on this order: never change these numbers.
    plan = ShareSchedule([(0, np.array([3.0, 1, 0])), (13, np.array([1.0, 0, 1]))], True, 8, 7)
    groups, ranks = plan.locate(np.array([0, 1, 2, 3, 11, 12, 13, 14, 15, 10**9]))
    assert groups.tolist() == [0, 1, 0, 0, 2, 0, 2, 2, 0, 2]
    assert ranks.tolist() == [0, 0, 1, 2, 2, 7, 3, 4, 11, 499999996]


def test_times_become_positions_by_batch_size_and_epoch():
    times = Times.parse({"0 steps": "a", "3 steps": "b", "0.5 epochs": "c", "70 examples": "d"}, "weights")
    assert times.positions(10, 100) == [(0, "a"), (30, "b"), (50, "c"), (70, "d")]
    assert times.positions(1, 6) == [(0, "a"), (3, "c"), (70, "d")], "of two times at one position, the later one"


LABELS = np.arange(40) % 2
SCENES = Scenes((LABELS * 3 + 1).tolist())
PLAIN = ArraySource({"y": LABELS})
WRAPPED = {
    "weighted": lambda shares: Weighted(PLAIN, tags=LABELS, balance=shares),
    "padded": lambda shares: Balanced(Padded(Weighted(SCENES, tags=LABELS, balance=shares), 4, FIELDS), 2),
    "mixture": lambda shares: Mixture({"0": PLAIN, "1": PLAIN}, shares, interpolate=True),
}


@given(
    kind=st.sampled_from(sorted(WRAPPED)),
    steps=st.integers(1, 500),
    batch_size=st.sampled_from([2, 6, 64]),
    thousandths=st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True),
)
@properties.examples(40)
def test_percentages_draw_what_the_same_numbers_of_examples_draw(kind, steps, batch_size, thousandths):
    run, shares = steps * batch_size, {number: {"0": number, "1": 7} for number in [0, *sorted(thousandths)]}
    relative = WRAPPED[kind]({f"{number / 10}%": value for number, value in shares.items()})
    absolute = WRAPPED[kind]({f"{-(-number * run // 1000)} examples": value for number, value in shares.items()})
    train = Train(total=Duration(steps, "steps"), global_batch_size=batch_size)
    assert for_run(absolute, train) is absolute
    one, two = (Batches(for_run(source, train), batch_size, 0, True) for source in (relative, absolute))
    for n in {0, steps // 3, steps - 1}:
        assert one.addresses(n).tolist() == two.addresses(n).tolist()
    assert follows_run(relative) == (max(thousandths) > 0)
    assert for_run(relative, train).fingerprint() == relative.fingerprint()


@pytest.mark.parametrize(
    ("values", "batch_size", "text"),
    [
        ({"1 epoch": 1}, 4, "weights: the first time is '1 epoch'. Start with '0 steps'."),
        ({"0 steps": 1, "2 hours": 1}, 4, "weights: found '2 hours'. Units here: steps, examples, epochs, %."),
        ({"0 steps": 1, "9 steps": 1, "1 epoch": 1}, 4, "weights: '1 epoch' is before the time above it. Sort"),
        ({"0 steps": 1, "9 steps": 1}, None, "weights: '9 steps': a part of a mixture does not know the step. Write"),
        ({"0%": 1, "10%": 1}, None, "weights: '10%': a part of a mixture does not know the step. Write"),
        ({"0%": 1, "50%": 1}, 4, "weights: '50%': the length of the run is not known here. Call engine.data.sampl"),
        ({"0%": 1, "101%": 1}, 4, "weights: found '101%'. Allowed: 0% to 100% of the run."),
    ],
)
def test_invalid_times_raise_data_error(values, batch_size, text):
    with pytest.raises(DataError) as error:
        Times.parse(values, "weights").positions(batch_size, 20)
    assert str(error.value).startswith(text)


def test_time_that_is_no_duration_is_a_config_error():
    with pytest.raises(ConfigError, match="weights: found 'soon', not a duration"):
        Times.parse({"soon": 1}, "weights")
