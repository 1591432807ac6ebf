"""Bounds that depend on one another."""

from engine.checkpoint import timeouts


def test_a_late_process_is_named_before_the_restore_itself_gives_up():
    assert 0.5 < timeouts.VERIFY_SHARE < 1


def test_the_loop_waits_less_for_a_recent_save_than_for_listing_steps():
    assert timeouts.RECENT_S + timeouts.RESULTS_S < timeouts.LIST_S < timeouts.SAVE_S
