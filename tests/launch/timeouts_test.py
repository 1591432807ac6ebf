"""Timeouts of the launchers that must exceed timeouts of the processes that they start."""

from engine.cluster import peer_failure
from engine.cluster import timeouts as cluster
from engine.launch import timeouts


def test_failed_process_can_notify_its_peers_before_they_are_killed():
    assert cluster.PEERS_READ_S + cluster.PEERS_EXIT_S < timeouts.FAILURE_GRACE_S


def test_slurm_waits_longer_than_the_other_tasks_need_to_exit():
    detection = peer_failure.heartbeat_s(100_000) + 2 * cluster.LONGEST_HEARTBEAT_POLL_S
    assert detection + cluster.EXIT_CALLBACKS_S < timeouts.SLURM_KILL_S
