"""Bounds that depend on one another."""

from engine.cluster import timeouts


def test_a_failed_peer_is_reported_before_any_exchange_gives_up():
    detection = timeouts.HEARTBEAT_S + 2 * timeouts.PEER_POLL_S + timeouts.MAIN_THREAD_S + timeouts.LAST_ACTS_S
    assert detection < min(timeouts.AGREE_S, timeouts.CONSISTENCY_S, timeouts.LEAVE_S)


def test_the_others_have_exited_before_the_primary_takes_the_store_away():
    assert timeouts.PEER_POLL_S < timeouts.FAREWELL_S
    assert timeouts.FAREWELL_EXIT_S + timeouts.FAREWELL_S < timeouts.LAST_ACTS_S
