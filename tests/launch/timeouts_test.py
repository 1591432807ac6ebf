"""Bounds of the launchers that depend on those of the processes that they start."""

from engine.cluster import timeouts as cluster
from engine.launch import timeouts


def test_a_failed_process_has_time_to_tell_its_peers_before_they_are_killed():
    assert cluster.PEER_POLL_S + cluster.PEERS_READ_S + cluster.PEERS_EXIT_S < timeouts.FAILURE_GRACE_S


def test_slurm_waits_longer_for_the_other_tasks_than_they_need_to_end():
    assert cluster.HEARTBEAT_S + cluster.EXIT_CALLBACKS_S + 2 * cluster.PEER_POLL_S < timeouts.SLURM_KILL_S
