"""Timeouts that depend on each other."""

import runpy

from engine.checkpoint import timeouts


def test_verification_times_out_before_the_restore():
    assert 0.5 < timeouts.VERIFY_SHARE < 1


def test_timeouts_of_the_loop_are_shorter_than_those_of_the_storage():
    recent_s = runpy.run_path(timeouts.__file__)["RECENT_S"]  # tests/zoo.py changes it in this process
    assert recent_s + timeouts.RESULTS_S < timeouts.LIST_S < timeouts.SAVE_S
