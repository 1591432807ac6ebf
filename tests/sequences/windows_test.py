import itertools

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.sequences.frame_index import FrameIndex
from engine.sequences.windows import Cut, cut


def index(times, groups=None):
    groups = np.zeros(len(times), np.int64) if groups is None else np.array(groups)
    return FrameIndex(groups, ("north", "south", "west"), np.array(times))


def windows(found, length=2, stride=2, max_gap=None, pads=False, longest=None):
    return cut(found, Cut(length, stride, max_gap, pads, longest), "drives.Log", "Sequences")


def frames(found):
    return found.rows(np.arange(len(found)))[0].tolist()


def plain(times, groups, length, stride, gap):
    """Returns the frames of each window: a loop over each group."""
    found = []
    for group in dict.fromkeys(groups):
        frames = [i for i, own in enumerate(groups) if own == group]
        parts, part = [], [frames[0]]
        for before, after in itertools.pairwise(frames):
            if times[after] - times[before] > gap:
                parts.append(part)
                part = []
            part.append(after)
        for each in [*parts, part]:
            found += [each[at : at + length] for at in range(0, len(each) - length + 1, stride)]
    return found


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (3, 1), (3, 2), (3, 3), (2, 5), (4, 6)])
def test_windows_are_those_of_a_loop_over_each_drive(length, stride):
    """With drives whose frames alternate in the dataset, and gaps."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 60)
    groups = np.unique(groups, return_inverse=True)[1]
    first = [int(np.flatnonzero(groups == group)[0]) for group in range(3)]
    groups = np.argsort(np.argsort(first))[groups]  # numbered as they begin
    times = np.cumsum(rng.choice([1, 1, 1, 9], 60))
    found = windows(index(times, groups), length, stride, max_gap=6)
    expected = plain(times.tolist(), groups.tolist(), length, stride, 6)
    assert frames(found) == expected
    assert found.unused == 60 - len({frame for window in expected for frame in window})
    for count in (1, 2, len(found) - 1):
        assert frames(found.limited(count)) == expected[:count] and len(found.limited(count)) == count


def test_last_window_of_a_padded_drive_repeats_its_last_frame():
    found = windows(index([0, 1, 2, 3, 4, 10, 11], None), 3, 3, pads=True)
    rows, valid = found.rows(np.arange(3))
    assert rows.tolist() == [[0, 1, 2], [3, 4, 4], [5, 6, 6]]
    assert valid.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert found.sizes.tolist() == [2, 1] and found.unused == 0
    assert found.limited(1).rows(np.array([0]))[0].tolist() == [[0, 1, 2]] and found.limited(1).ends.tolist() == [3]


def test_default_gap_is_one_and_a_half_times_the_median_step_of_the_drive():
    times = [0, 2, 4, 7, 10.1, 0, 1, 2.5, 4.01]
    assert frames(windows(index(times, [0] * 5 + [1] * 4), 2, 1)) == [[0, 1], [1, 2], [2, 3], [5, 6], [6, 7], [7, 8]]


def test_nanoseconds_since_1970_keep_their_last_digits():
    begin = 1_700_000_000_000_000_001
    assert frames(windows(index(begin + np.array([0, 1, 2, 4, 5])), 2, 1)) == [[0, 1], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("found", "settings", "text"),
    [
        (
            index([0, 1, 0], [0, 0, 1]), {},
            "group 'south' of drives.Log has one frame, example 2. A drive has at least two. Correct `group`, or",
        ),
        (
            index([0, 5, 1, 2, 3], [0, 1, 0, 1, 0]), {},
            r"example 3 of drives.Log in group 'south' has an earlier time, 2, than example 1 before it, 5. Write",
        ),
        (
            index([0, 1, 1]), {},
            "example 2 of drives.Log in group 'north' has the same time, 1, as example 1 before it. Remove one",
        ),
        (
            index([0, 1, 2, 3], [1, 1, 1, 0]), {"longest": 2},
            "group 'south' of drives.Log, from example 0 on, has 3 frames, and longest = 2. Correct `group`",
        ),
        (
            index([0, 1, 2, 9, 10]), {"length": 4},
            "length = 4 frames, but the longest part of a drive of drives.Log without a gap has 3. Use a smaller",
        ),
    ],
)  # fmt: skip
def test_drives_that_do_not_fit_are_refused_by_name(found, settings, text):
    with pytest.raises(DataError, match=f"^Sequences: {text}"):
        windows(found, **settings)


def test_a_drive_of_one_frame_is_a_window_of_one():
    assert frames(windows(index([0, 1, 0], [0, 0, 1]), 1, 1)) == [[0], [1], [2]]
