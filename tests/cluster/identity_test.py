"""Index and count of this process, before and after joining."""

from engine.cluster import identity
from engine.cluster.cluster_detection import ProcessInfo


def test_process_that_has_not_joined_is_the_only_process(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    assert (identity.index(), identity.count(), identity.is_primary()) == (0, 1, True)


def test_joined_process_has_its_index_and_count(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    identity.set_joined(ProcessInfo(1, 3, "127.0.0.1:1"))
    assert (identity.index(), identity.count(), identity.is_primary()) == (1, 3, False)
