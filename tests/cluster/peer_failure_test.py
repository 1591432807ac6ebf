"""The end of one process as the others learn of it; real ones end in tests/faults/process_test.py."""

import json
import socket
import subprocess
import sys

import pytest

from engine.cluster import kv_store, peer_failure, shutdown
from engine.cluster.shutdown import Verdict
from tests import runs

RAISED = Verdict(1, 1, "Traceback (most recent call last):\n  ...\nKeyError: 'x'\nraised in process 1 of 2", 5.0)


def test_an_error_for_a_peer_without_words_says_what_to_do_and_one_with_words_has_its_code():
    error = peer_failure.lost(None, "process 3 is gone")
    assert (error.exit_code, str(error)) == (
        42,
        "process 3 is gone. Its own output says more; the same command goes on from the newest checkpoint.",
    )
    error = peer_failure.lost(RAISED, "unused")
    assert (error.exit_code, str(error)) == (1, "process 1 ended this run: KeyError: 'x'")


def test_the_cause_is_what_another_process_left_in_the_store_and_else_a_final_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(kv_store, "_alone", kv_store._Alone())
    assert peer_failure.cause() is None
    for index, code in ((2, 42), (1, 43)):
        monkeypatch.setenv(shutdown.VARIABLE, str(tmp_path / f"{index}.json"))
        shutdown.record(code, f"from {index}")
    monkeypatch.setenv(shutdown.VARIABLE, str(tmp_path / "0.json"))
    found = peer_failure.cause()
    assert found is not None and (found.index, found.code) == (1, 43)
    kv_store.put("cause", json.dumps(RAISED.__dict__))
    assert peer_failure.cause() == RAISED
    monkeypatch.setattr("engine.cluster.peer_failure.index", lambda: 1)
    assert peer_failure.cause() is None  # its own


def test_processes_are_named_in_order():
    assert peer_failure.name([2]) == "process 2"
    assert peer_failure.name({3, 0}) == "processes 0, 3"


def test_a_single_process_tells_nobody(monkeypatch):
    peer_failure.tell_others(1, "x")
    assert kv_store.try_get("cause") is None


PAIR = """
import sys, threading, time
from engine.cluster import kv_store, peer_failure, shutdown, processes, cluster_detection
processes.initialize(cluster_detection.resolve().who)
me = processes.index()
shutdown.add_last_act(lambda code, text: print("last act", code, flush=True))
assert kv_store.barrier("ready", 60) == []
if me == {failing}:
    peer_failure.tell_others(1, "Traceback\\nKeyError: 'x'")
    shutdown.end_alone(1)
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
def test_started_by_hand_a_process_learns_why_another_ended_and_ends_too(failing):
    """No launcher, no collective, and a main thread that waits for something else."""
    ranks = pair(PAIR.format(failing=failing))
    ends = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], ends
    output, errors = ends[1 - failing]
    assert (output, errors) == ("last act 1\n", f"LostPeer: process {failing} ended this run: KeyError: 'x'\n")


ASKING = """
import sys, threading, time
from engine.cluster import kv_store, peer_failure, peers, processes, cluster_detection
ask, asking = kv_store.alive, threading.Event()
def alive():
    asking.set()
    if threading.current_thread() is not threading.main_thread():
        time.sleep(1)
    return ask()
kv_store.alive = alive
processes.initialize(cluster_detection.resolve().who)
assert asking.wait(30)
peers.part()
print([thread.name for thread in threading.enumerate() if thread.name.startswith("look_for")])
"""


@pytest.mark.multiprocess
def test_none_that_parts_has_left_a_thread_inside_jax():
    ranks = pair(ASKING)
    ends = [rank.communicate(timeout=60) for rank in ranks]
    assert [(rank.returncode, *end) for rank, end in zip(ranks, ends, strict=True)] == [(0, "[]\n", "")] * 2
