"""Propagation of a process failure to its peers. tests/faults/process_test.py kills processes of real runs."""

import json
import re
import signal
import socket
import sys
import time

import jax
import pytest

from engine.base.errors import RunError
from engine.cluster import kv_store, peer_failure, timeouts, verdict
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.peer_failure import LostPeer, location_reported, lost_peer_text, lost_peers_reported
from engine.cluster.verdict import Verdict
from tests import runs

RAISED = Verdict(1, 1, "Traceback (most recent call last):\n  ...\nKeyError: 'x' (a.py:1 in f).", 5.0)


def test_lost_peer_error_with_and_without_a_verdict():
    error = peer_failure.lost_peer(None, "process 3 is gone")
    assert (error.exit_code, str(error)) == (
        42,
        "process 3 is gone. Its own output has the reason; the same command resumes from the newest checkpoint.",
    )
    error = peer_failure.lost_peer(RAISED, "unused")
    assert (error.exit_code, str(error)) == (1, "process 1 ended this run: KeyError: 'x' (a.py:1 in f).")


def test_first_verdict_comes_from_the_store_or_the_launcher(monkeypatch, tmp_path):
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())
    assert peer_failure.first_verdict() is None
    for index, code in ((2, 42), (1, 43)):
        monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / f"{index}.json"))
        verdict.record(code, f"from {index}")
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    found = peer_failure.first_verdict()
    assert found is not None and (found.index, found.code) == (1, 43)
    kv_store.put("verdict", json.dumps(RAISED.__dict__))
    assert peer_failure.first_verdict() == RAISED
    monkeypatch.setattr("engine.cluster.peer_failure.index", lambda: 1)
    assert peer_failure.first_verdict() is None  # it is the verdict of this process


@pytest.mark.parametrize("count", [2, 64, 65, 1000, 10_000])
def test_each_process_shares_heartbeats_with_a_few_others(count):
    groups = peer_failure.heartbeat_groups(count)
    assert sorted(process for group in groups for process in group) == list(range(count))
    assert all(2 <= len(group) <= peer_failure.GROUP for group in groups)
    assert all(process in groups[process % len(groups)] for process in range(count))
    if count > 8 * peer_failure.GROUP:  # processes of one host do not share a group
        assert len({process % len(groups) for process in range(8)}) == 8


def test_single_process_publishes_no_verdict():
    peer_failure.report_to_peers(RunError("x"))
    assert kv_store.try_get("verdict") is None


GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:4485: Connection reset by peer"


@pytest.fixture
def one_of_two(monkeypatch):
    monkeypatch.setattr("engine.cluster.identity._joined", ProcessInfo(0, 2, "127.0.0.1:1"))


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
def test_lost_peer_text_recognizes_errors_of_jax(words, lost):
    assert (lost_peer_text(jax.errors.JaxRuntimeError(words)) is not None) == lost
    assert lost_peer_text(ValueError(words)) is None


def test_lost_peer_text_searches_the_chain_of_causes():
    error = ValueError("step 5 could not be saved")
    error.__cause__ = jax.errors.JaxRuntimeError(GLOO + "\nand a stack")
    assert lost_peer_text(error) == GLOO


def test_jax_error_about_a_lost_peer_becomes_lost_peer_with_code_42(one_of_two):
    words = r"another process of this run is gone \(UNKNOWN: Gloo.* resumes from the newest"
    with pytest.raises(LostPeer, match=words) as raised, lost_peers_reported(), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 42
    assert isinstance(raised.value.__cause__, jax.errors.JaxRuntimeError)  # converted once, even by nested contexts


def test_lost_peer_error_has_text_and_code_of_the_peers_verdict(one_of_two, tmp_path, monkeypatch):
    for index, code, text in ((2, 42, "LostPeer: gone"), (1, 1, "Traceback\n  a line\nKeyError: 'x'")):
        monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / f"{index}.json"))
        verdict.record(code, text)
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    with pytest.raises(LostPeer, match=r"^process 1 ended this run: KeyError: 'x'$") as raised, lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert raised.value.exit_code == 1


def test_other_errors_and_errors_of_a_single_process_are_unchanged(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), lost_peers_reported():
        raise jax.errors.JaxRuntimeError(GLOO)
    monkeypatch.setattr("engine.cluster.identity._joined", ProcessInfo(0, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError), lost_peers_reported():
        raise KeyError("x")


def test_errors_of_user_code_get_a_note_with_process_and_step(monkeypatch):
    with pytest.raises(KeyError) as raised, location_reported(lambda: 7):
        raise KeyError("x")
    assert raised.value.__notes__ == ["Raised after step 7."]
    monkeypatch.setattr("engine.cluster.identity._joined", ProcessInfo(1, 2, "127.0.0.1:1"))
    with pytest.raises(KeyError) as raised, location_reported(lambda: 8):
        raise KeyError("x")
    assert raised.value.__notes__ == ["Raised in process 1 of 2, after step 8."]
    with pytest.raises(LostPeer) as lost, location_reported(lambda: 7):
        raise LostPeer("gone")
    assert not hasattr(lost.value, "__notes__")


PAIR = """
import sys, threading, time
from engine.cluster import cluster_detection, group, processes, shutdown
processes.initialize(cluster_detection.detect().process)
me = group.index()
shutdown.add_exit_callback(lambda error: print("callback", error.exit_code if me != {failing} else "", flush=True))
assert group.barrier("ready", 60) == []
if me == {failing}:
    shutdown.end(KeyError("x"))
threading.Event().wait(300)
"""


def start(program, processes=2):
    """Starts the processes of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    who = {"CONVOY_COORDINATOR": f"127.0.0.1:{port}", "CONVOY_NUM_PROCESSES": str(processes)}
    words = [sys.executable, "-c", program]
    return [
        runs.begin(words, None, runs.environment(**who, CONVOY_PROCESS_ID=str(i)), apart=True) for i in range(processes)
    ]


@pytest.mark.multiprocess
@pytest.mark.parametrize("failing", [0, 1])
def test_peer_ends_with_the_verdict_of_a_failed_process_without_a_launcher(failing):
    """There is no collective, and the main thread waits for something else."""
    children = start(PAIR.format(failing=failing))
    ends = [child.communicate(timeout=180) for child in children]
    assert [child.returncode for child in children] == [1, 1], ends
    output, errors = ends[1 - failing]
    assert (output, errors) == ("callback 1\n", f"LostPeer: process {failing} ended this run: KeyError: 'x'.\n")


LEAVING = """
import sys, threading, time
from engine.cluster import cluster_detection, group, kv_store, peer_failure, processes
original, called = kv_store.alive, threading.Event()
def alive(among):
    called.set()
    if threading.current_thread() is not threading.main_thread():
        time.sleep(1)
    return original(among)
kv_store.alive = alive
processes.initialize(cluster_detection.detect().process)
assert called.wait(120)
processes.leave()
print([thread.name for thread in threading.enumerate() if thread.name.startswith(("watch_", "probe_"))])
"""


@pytest.mark.multiprocess
def test_leave_joins_the_watcher_threads():
    children = start(LEAVING)
    ends = [child.communicate(timeout=180) for child in children]
    assert [(child.returncode, *end) for child, end in zip(children, ends, strict=True)] == [(0, "[]\n", "")] * 2


JOINED = """
import threading
from engine.cluster import cluster_detection, group, processes
processes.initialize(cluster_detection.detect().process)
assert group.barrier("ready", 60) == []
print("ready", flush=True)
threading.Event().wait(300)
"""


@pytest.mark.multiprocess
def test_processes_that_lose_process_0_end_with_a_sentence_and_42():
    """Process 2 is stopped until the others have ended. By itself, JAX would end both with SIGABRT and a C++ stack."""
    children = start(JOINED, processes=3)
    try:
        assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * 3
        children[2].send_signal(signal.SIGSTOP)
        children[0].kill()
        ended = children[1].communicate(timeout=180)[1]
        assert children[1].returncode == 42, ended
        assert ended.startswith("LostPeer: process 0, which coordinates the processes, has not answered for 5 s: ")
        assert ended.endswith("the same command resumes from the newest checkpoint.\n") and ended.count("\n") == 1
        time.sleep(timeouts.HEARTBEAT_S / 2 - timeouts.COORDINATOR_S + 1)
        children[2].send_signal(signal.SIGCONT)
        ended = children[2].communicate(timeout=180)[1]
        assert children[2].returncode == 42, ended
        assert re.fullmatch(r"LostPeer: process 2 was stopped for \d+ s, and the other processes .*\n", ended)
    finally:
        for child in children:
            child.kill()
            child.communicate()
