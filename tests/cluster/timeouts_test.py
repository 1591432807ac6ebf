"""Timeouts that depend on each other."""

from engine.cluster import timeouts


def test_failed_peer_is_detected_before_any_exchange_times_out():
    detection = timeouts.HEARTBEAT_S + 2 * timeouts.PEER_POLL_S + timeouts.MAIN_THREAD_S + timeouts.EXIT_CALLBACKS_S
    assert detection < min(timeouts.AGREE_S, timeouts.CONSISTENCY_S, timeouts.LEAVE_S)


def test_peers_exit_before_the_primary_stops_the_store():
    assert timeouts.PEER_POLL_S < timeouts.PEERS_READ_S
    assert timeouts.PEERS_EXIT_S + timeouts.PEERS_READ_S < timeouts.EXIT_CALLBACKS_S


def test_process_that_loses_process_0_ends_before_jax_aborts_it():
    """JAX sends a heartbeat every half of its timeout, waits as long for the answer, and aborts a second later."""
    end = timeouts.PEER_POLL_S + timeouts.COORDINATOR_S + 2 * timeouts.COORDINATOR_POLL_S
    assert end + 0.5 < timeouts.HEARTBEAT_S / 2 + 1
