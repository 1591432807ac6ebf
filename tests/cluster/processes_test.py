"""A process that runs alone joins no others."""

from engine.cluster import group
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.processes import initialize, leave


def test_single_process_is_the_primary():
    initialize(ProcessInfo())
    leave()
    assert (group.index(), group.count(), group.is_primary()) == (0, 1, True)
