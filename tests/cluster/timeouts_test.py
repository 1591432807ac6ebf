"""Timeouts that depend on each other."""

import pytest

from engine.cluster import kv_store, peer_failure, timeouts


def test_failed_peer_is_detected_before_any_exchange_times_out():
    detection = timeouts.HEARTBEAT_S + 2 * timeouts.PEER_POLL_S + timeouts.MAIN_THREAD_S + timeouts.EXIT_CALLBACKS_S
    assert detection < min(timeouts.AGREE_S, timeouts.CONSISTENCY_S, timeouts.LEAVE_S)


def test_peers_exit_before_the_primary_stops_the_store():
    assert timeouts.PEERS_EXIT_S + timeouts.PEERS_READ_S < timeouts.EXIT_CALLBACKS_S


@pytest.mark.parametrize("processes", [2, 250, 300, 1000, 25_000])
def test_process_that_loses_process_0_ends_before_jax_aborts_it(processes):
    """JAX sends a heartbeat every half of its timeout, waits as long for the answer, and aborts a second later."""
    probe = kv_store.poll_period(timeouts.PEER_POLL_S, timeouts.LONGEST_PROBE_S, processes)
    end = probe + timeouts.COORDINATOR_S + 2 * timeouts.COORDINATOR_POLL_S
    assert end + 0.5 < peer_failure.heartbeat_s(processes) / 2 + 1


def test_process_0_of_a_large_run_answers_few_probes():
    assert peer_failure.heartbeat_s(250) == timeouts.HEARTBEAT_S
    probe = kv_store.poll_period(timeouts.PEER_POLL_S, timeouts.LONGEST_PROBE_S, 25_000)
    assert 25_000 / probe < 4_000
