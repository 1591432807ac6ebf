"""Index and count of this process, before and after joining, and the names of processes."""

from engine.cluster import identity
from engine.cluster.cluster_detection import ProcessInfo


def test_process_that_has_not_joined_is_the_only_process(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    assert (identity.index(), identity.count(), identity.is_primary()) == (0, 1, True)


def test_joined_process_has_its_index_and_count(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    identity.set_joined(ProcessInfo(1, 3, "127.0.0.1:1"))
    assert (identity.index(), identity.count(), identity.is_primary()) == (1, 3, False)


def test_process_list_is_sorted():
    assert identity.process_list([2]) == "process 2"
    assert identity.process_list({3, 0}) == "processes 0, 3"
    assert identity.process_list(range(1, 10_000)).endswith(", 15, 16 and 9983 more")
