"""Who this process is, before and after joining."""

from engine.cluster import identity
from engine.cluster.cluster_detection import Processes


def test_a_process_that_has_not_joined_is_the_only_one(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    assert (identity.index(), identity.count(), identity.is_primary()) == (0, 1, True)


def test_a_joined_process_knows_its_number(monkeypatch):
    monkeypatch.setattr(identity, "_joined", None)
    identity.set_joined(Processes(1, 3, "127.0.0.1:1"))
    assert (identity.index(), identity.count(), identity.is_primary()) == (1, 3, False)
