"""Timeouts that depend on each other."""

from engine.checkpoint import timeouts


def test_verification_times_out_before_the_restore():
    assert 0.5 < timeouts.VERIFY_SHARE < 1


def test_timeouts_of_the_loop_are_shorter_than_those_of_the_storage():
    assert timeouts.RECENT_S + timeouts.RESULTS_S < timeouts.LIST_S < timeouts.SAVE_S
