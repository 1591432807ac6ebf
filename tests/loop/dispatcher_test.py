"""Series of dispatches: how many steps each has, where a series ends, and which updates are skipped."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from engine.data.stages import NO_TIMES
from engine.loop.dispatcher import Dispatcher
from engine.loop.stragglers.monitor import Stragglers


class Feed:
    """Batches that are their own numbers; from `limit` on, the run is asked to stop."""

    wait_s = made_s = 0.0
    readers, times = 2, NO_TIMES

    def __init__(self, step, shape_changes=()):
        self.next_batch, self.shape_changes = step, shape_changes

    def next(self, count):
        self.next_batch += count
        return tuple(range(self.next_batch - count, self.next_batch))

    def same_shape(self, count):
        return not any(self.next_batch < step < self.next_batch + count for step in self.shape_changes)

    def seek(self, step):
        self.next_batch = step


class Divergence:
    """Skips some batches; the result of batch `bad` shows a problem at once."""

    def __init__(self, skipped=(), bad=None):
        self.skipped, self.bad, self.pending = set(skipped), bad, False

    def skip_mask(self, first, k):
        return tuple(first + i in self.skipped for i in range(k))


def dispatcher(k=4, step=0, divergence=None, stop_at=10**9, **feed):
    """A dispatcher of steps that append (batches, skip mask) to the state, and its feed."""
    divergence, opened = divergence or Divergence(), Feed(step, **feed)

    def call(state, batches, skips):
        divergence.pending |= divergence.bad in batches
        return [*state, (batches, skips)], None

    parts: dict[str, Any] = dict(
        program=SimpleNamespace(skip_mask=lambda flags: flags),
        programs={1: call, k: call},
        inputs=SimpleNamespace(open=lambda step, position: contextlib.nullcontext(opened)),
        divergence=divergence,
        preemption=SimpleNamespace(unless_stopped=lambda next, n: None if opened.next_batch >= stop_at else next(n)),
        watchdog=SimpleNamespace(training=lambda step: contextlib.nullcontext(), dispatched=0),
        profile=SimpleNamespace(marked=lambda programs, step: programs, begin_attempt=lambda step: None),
        stragglers=Stragglers(),
        recorder=SimpleNamespace(push=lambda *args: None, latest_arrival=0.0),
        stopwatch=SimpleNamespace(reached=lambda *args: None, begin=lambda step: None),
        poll=lambda: None,
        step=step,
    )
    return Dispatcher(**parts), opened


def batches(state):
    return [list(batches) for batches, _ in state]


@pytest.mark.parametrize(
    ("step", "next_event", "end", "expected"),
    [
        (0, 8, 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (0, 6, 6, [[0, 1, 2, 3], [4], [5]]),
        (0, 3, 100, [[0, 1, 2, 3]]),  # an event that depends on a clock does not end a dispatch
        (5, 6, 6, [[5]]),
    ],
)
def test_series_ends_at_the_next_event_with_whole_dispatches_where_they_fit(step, next_event, end, expected):
    found, _ = dispatcher(step=step)
    with found.open(step, {}):
        assert batches(found.run([], next_event, end)) == expected  # pyright: ignore
        assert found.step == expected[-1][-1] + 1


def test_batches_of_several_shapes_are_dispatched_one_by_one():
    found, _ = dispatcher(shape_changes=[2])
    with found.open(0, {}):
        assert batches(found.run([], 6, 6)) == [[0], [1], [2, 3, 4, 5]]  # pyright: ignore


def test_request_to_stop_ends_the_series_at_the_first_batch_that_was_not_dispatched():
    found, feed = dispatcher(stop_at=4)
    with found.open(0, {}):
        assert batches(found.run([], 8, 8)) == [[0, 1, 2, 3]]  # pyright: ignore
        assert (found.step, feed.next_batch) == (4, 4)


def test_bad_result_ends_the_series_after_at_least_one_dispatch():
    divergence = Divergence(bad=1)
    divergence.pending = True
    found, _ = dispatcher(k=1, divergence=divergence)
    with found.open(0, {}):
        assert batches(found.run([], 8, 8)) == [[0]]  # pyright: ignore


def test_batches_of_the_skip_mask_are_skipped():
    found, _ = dispatcher(divergence=Divergence(skipped=[5]))
    with found.open(0, {}):
        masks = [mask for _, mask in found.run([], 8, 8)]  # pyright: ignore
    assert masks == [(False,) * 4, (False, True, False, False)]
