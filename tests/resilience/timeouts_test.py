"""Bounds of resilience that depend on those of the process group."""

from engine.cluster import timeouts as cluster
from engine.resilience import timeouts


def test_all_processes_know_of_a_hang_before_the_first_to_notice_it_stops_collecting_stacks():
    assert 2 * timeouts.WATCHDOG_POLL_S < timeouts.STACKS_S


def test_restart_waits_are_ordered():
    assert timeouts.SAME_SIGNAL_S < timeouts.FIRST_RESTART_S < timeouts.LONGEST_RESTART_S


def test_a_hang_is_reported_before_an_exchange_gives_up():
    assert timeouts.STACKS_S + cluster.VERDICT_S < cluster.AGREE_S
