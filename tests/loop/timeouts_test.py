"""Timeouts of this package that depend on each other and on those of the process group."""

from engine.cluster import timeouts as cluster
from engine.loop import timeouts


def test_all_processes_poll_a_hang_before_collecting_stacks_times_out():
    assert 2 * timeouts.WATCHDOG_POLL_S < timeouts.STACKS_S


def test_hang_is_reported_before_an_agreement_times_out():
    assert timeouts.STACKS_S + cluster.VERDICT_S < cluster.AGREE_S
