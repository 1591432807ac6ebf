"""What JAX raises when a peer is gone, told from an error of the user's; real peers are in tests/processes_test.py."""

import jax
import pytest

from engine.cluster import peers, shutdown
from engine.cluster.cluster_detection import Processes
from engine.cluster.peers import LostPeer, broadcast_from_primary, lost_peers_reported, sign_of_a_lost_peer
from engine.config.errors import RunError

GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:4485: Connection reset by peer"


@pytest.fixture
def one_of_two(monkeypatch):
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(0, 2, "127.0.0.1:1"))


def test_a_single_process_agrees_with_itself():
    value = {1: "kept as it is"}
    assert broadcast_from_primary(value, "a test") is value


def test_what_the_first_process_does_is_everybodys(one_of_two, monkeypatch):
    def fail():
        raise RunError("runs/a: another job trains here.")

    shared = []
    monkeypatch.setattr(peers, "broadcast_from_primary", lambda value, what: shared.append(value) or value)
    assert peers.run_on_primary(lambda: [1], "a test") == [1]
    with pytest.raises(RunError) as met:
        peers.run_on_primary(fail, "a test")
    assert met.value.everywhere
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(1, 2, "127.0.0.1:1"))
    monkeypatch.setattr(peers, "broadcast_from_primary", lambda value, what: shared[1])
    with pytest.raises(peers.PrimaryError) as told:
        peers.run_on_primary(lambda: pytest.fail("not the first"), "a test")
    assert (told.value.kind, str(told.value), told.value.exit_code) == ("RunError", str(met.value), 1)
    assert told.value.everywhere


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (GLOO, True),
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("INTERNAL: NCCL operation failed: remote process exited", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes", False),
        ("INVALID_ARGUMENT: Executable expected shape f32[2]", False),
    ],
)
def test_the_signs_of_a_lost_peer(words, lost):
    assert (sign_of_a_lost_peer(jax.errors.JaxRuntimeError(words)) is not None) == lost
    assert sign_of_a_lost_peer(ValueError(words)) is None


def test_an_error_that_was_led_to_by_one_tells_it_too():
    error = ValueError("step 5 could not be saved")
    error.__cause__ = jax.errors.JaxRuntimeError(GLOO + "\nand a stack")
    assert sign_of_a_lost_peer(error) == GLOO


def test_it_becomes_a_sentence_that_says_start_me_again(one_of_two):
    words = r"another process of this run is gone \(UNKNOWN: Gloo.* goes on from the newest"
    with pytest.raises(LostPeer, match=words) as raised, lost_peers_reported(), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 42
    assert isinstance(raised.value.__cause__, jax.errors.JaxRuntimeError)  # told once, however deep it is looked for


def test_the_peers_own_verdict_is_passed_on(one_of_two, tmp_path, monkeypatch):
    for index, code, text in ((2, 42, "LostPeer: gone"), (1, 1, "Traceback\n  a line\nKeyError: 'x'")):
        monkeypatch.setenv(shutdown.VARIABLE, str(tmp_path / f"{index}.json"))
        shutdown.record(code, text)
    monkeypatch.setenv(shutdown.VARIABLE, str(tmp_path / "0.json"))
    with pytest.raises(LostPeer, match=r"^process 1 ended this run: KeyError: 'x'$") as raised, lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 1


def test_other_errors_and_those_of_a_single_process_stay(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(0, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError), lost_peers_reported():
        raise KeyError("x")


def test_an_error_of_the_users_says_where_it_was_raised_and_a_sentence_of_the_engines_does_not(monkeypatch):
    with pytest.raises(KeyError) as raised, peers.location_reported(lambda: 7):
        raise KeyError("x")
    assert raised.value.__notes__ == ["raised after step 7"]
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(1, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError) as raised, peers.location_reported(lambda: 8):
        raise KeyError("x")
    assert raised.value.__notes__ == ["raised in process 1 of 2, after step 8"]
    with pytest.raises(LostPeer) as lost, peers.location_reported(lambda: 7):
        raise LostPeer("gone")
    assert not hasattr(lost.value, "__notes__")


def test_a_single_process_parts_from_nobody():
    peers.part()
