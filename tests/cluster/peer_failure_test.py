"""The end of one process as the others learn of it; real ones end in tests/faults/process_test.py."""

import json
import socket
import subprocess
import sys

import jax
import pytest

from engine.cluster import kv_store, peer_failure, verdict
from engine.cluster.cluster_detection import Processes
from engine.cluster.peer_failure import LostPeer, location_reported, lost_peers_reported, sign_of_a_lost_peer
from engine.cluster.verdict import Verdict
from engine.config.errors import RunError
from tests import runs

RAISED = Verdict(1, 1, "Traceback (most recent call last):\n  ...\nKeyError: 'x'\nraised in process 1 of 2", 5.0)


def test_a_lost_peer_without_a_verdict_says_what_to_do_and_one_with_a_verdict_has_its_code():
    error = peer_failure.lost(None, "process 3 is gone")
    assert (error.exit_code, str(error)) == (
        42,
        "process 3 is gone. Its own output says more; the same command goes on from the newest checkpoint.",
    )
    error = peer_failure.lost(RAISED, "unused")
    assert (error.exit_code, str(error)) == (1, "process 1 ended this run: KeyError: 'x'")


def test_the_cause_is_a_verdict_in_the_store_or_else_a_final_one_of_the_launcher(monkeypatch, tmp_path):
    monkeypatch.setattr(kv_store, "_alone", kv_store._Alone())
    assert peer_failure.cause() is None
    for index, code in ((2, 42), (1, 43)):
        monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / f"{index}.json"))
        verdict.record(code, f"from {index}")
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    found = peer_failure.cause()
    assert found is not None and (found.index, found.code) == (1, 43)
    kv_store.put("cause", json.dumps(RAISED.__dict__))
    assert peer_failure.cause() == RAISED
    monkeypatch.setattr("engine.cluster.peer_failure.index", lambda: 1)
    assert peer_failure.cause() is None  # its own


def test_processes_are_named_in_order():
    assert peer_failure.name([2]) == "process 2"
    assert peer_failure.name({3, 0}) == "processes 0, 3"


def test_a_single_process_reports_to_nobody():
    peer_failure.report_to_peers(RunError("x"))
    assert kv_store.try_get("cause") is None


GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:4485: Connection reset by peer"


@pytest.fixture
def one_of_two(monkeypatch):
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(0, 2, "127.0.0.1:1"))


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


def test_an_error_with_such_a_cause_has_its_sign():
    error = ValueError("step 5 could not be saved")
    error.__cause__ = jax.errors.JaxRuntimeError(GLOO + "\nand a stack")
    assert sign_of_a_lost_peer(error) == GLOO


def test_a_lost_peer_becomes_a_sentence_with_exit_code_42(one_of_two):
    words = r"another process of this run is gone \(UNKNOWN: Gloo.* goes on from the newest"
    with pytest.raises(LostPeer, match=words) as raised, lost_peers_reported(), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 42
    assert isinstance(raised.value.__cause__, jax.errors.JaxRuntimeError)  # told once, however deep it is looked for


def test_the_verdict_of_the_peer_is_passed_on(one_of_two, tmp_path, monkeypatch):
    for index, code, text in ((2, 42, "LostPeer: gone"), (1, 1, "Traceback\n  a line\nKeyError: 'x'")):
        monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / f"{index}.json"))
        verdict.record(code, text)
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    with pytest.raises(LostPeer, match=r"^process 1 ended this run: KeyError: 'x'$") as raised, lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 1


def test_other_errors_and_those_of_a_single_process_stay(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(0, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError), lost_peers_reported():
        raise KeyError("x")


def test_an_error_of_the_users_code_says_where_it_was_raised(monkeypatch):
    with pytest.raises(KeyError) as raised, location_reported(lambda: 7):
        raise KeyError("x")
    assert raised.value.__notes__ == ["raised after step 7"]
    monkeypatch.setattr("engine.cluster.identity._joined", Processes(1, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError) as raised, location_reported(lambda: 8):
        raise KeyError("x")
    assert raised.value.__notes__ == ["raised in process 1 of 2, after step 8"]
    with pytest.raises(LostPeer) as lost, location_reported(lambda: 7):
        raise LostPeer("gone")
    assert not hasattr(lost.value, "__notes__")


PAIR = """
import sys, threading, time
from engine.cluster import cluster_detection, group, processes, shutdown
processes.initialize(cluster_detection.resolve().who)
me = group.index()
shutdown.add_last_act(lambda error: print("last act", error.exit_code if me != {failing} else "", flush=True))
assert group.barrier("ready", 60) == []
if me == {failing}:
    shutdown.end(KeyError("x"))
threading.Event().wait(60)
"""


def pair(program):
    """Two processes of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=runs.environment(
                CONVOY_COORDINATOR=f"127.0.0.1:{port}", CONVOY_NUM_PROCESSES="2", CONVOY_PROCESS_ID=str(i)
            ),
        )
        for i in range(2)
    ]


@pytest.mark.multiprocess
@pytest.mark.parametrize("failing", [0, 1])
def test_without_a_launcher_a_process_learns_why_another_ended_and_ends_too(failing):
    """No launcher, no collective, and a main thread that waits for something else."""
    ranks = pair(PAIR.format(failing=failing))
    ends = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], ends
    output, errors = ends[1 - failing]
    assert (output, errors) == ("last act 1\n", f"LostPeer: process {failing} ended this run: KeyError: 'x'\n")


ASKING = """
import sys, threading, time
from engine.cluster import cluster_detection, group, kv_store, peer_failure, processes
ask, asking = kv_store.alive, threading.Event()
def alive():
    asking.set()
    if threading.current_thread() is not threading.main_thread():
        time.sleep(1)
    return ask()
kv_store.alive = alive
processes.initialize(cluster_detection.resolve().who)
assert asking.wait(30)
processes.leave()
print([thread.name for thread in threading.enumerate() if thread.name.startswith("watch_")])
"""


@pytest.mark.multiprocess
def test_a_process_that_leaves_has_no_thread_inside_jax():
    ranks = pair(ASKING)
    ends = [rank.communicate(timeout=60) for rank in ranks]
    assert [(rank.returncode, *end) for rank, end in zip(ranks, ends, strict=True)] == [(0, "[]\n", "")] * 2
