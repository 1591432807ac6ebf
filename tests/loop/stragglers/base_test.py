"""A run of a single process looks for no slow process."""

from engine.loop.stragglers.base import Stragglers


class Feed:
    wait_s = made_s = 0.0


def test_single_process_measures_nothing():
    with Stragglers() as stragglers:
        before = dict(vars(stragglers))
        stragglers.begin(0)
        stragglers.resume()
        stragglers.before_dispatch(0, 1, Feed(), 0.0)
        stragglers.report(1)
    assert vars(stragglers) == before == {}
