"""Texts under keys and bounded barriers: alone, and in three processes, with one that comes late or never."""

import subprocess
import sys
import threading
import time

import pytest

from engine.cluster import kv_store
from tests import runs


@pytest.fixture(autouse=True)
def an_empty_store(monkeypatch):
    monkeypatch.setattr(kv_store, "_alone", kv_store._Alone())


def test_a_new_jax_that_moves_the_client_is_told_with_a_sentence():
    """Every method that is used, looked up where the file looks for it."""
    import jax
    from jax._src import distributed
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    used = [
        "key_value_set", "blocking_key_value_get", "key_value_try_get", "key_value_dir_get", "key_value_delete",
        "key_value_increment", "get_live_nodes",
    ]  # fmt: skip
    missing = [name for name in used if not hasattr(_jax.DistributedRuntimeClient, name)]
    assert hasattr(distributed.global_state, "client") and not missing, kv_store._moved(f"missing: {missing}")
    assert jax.__version__ in kv_store._moved("x")


def test_a_client_that_is_not_there_is_told(monkeypatch):
    from jax._src import distributed

    monkeypatch.delattr(distributed.State, "client")
    with pytest.raises(RuntimeError, match=r"keeps its distributed client elsewhere .*change engine/cluster/kv_store"):
        kv_store._client()


def test_a_single_process_has_a_store_of_its_own():
    kv_store.put("a/0/step", "1")
    kv_store.put("a/0/step", "2")
    kv_store.put("ab", "3")
    assert kv_store.try_get("a/0/step") == "2"
    assert kv_store.entries("a") == {"0/step": "2"}
    assert not kv_store.put_first("ab", "4") and kv_store.put_first("c", "5")
    kv_store.delete("a")
    kv_store.delete("nothing")
    assert (kv_store.try_get("a/0/step"), kv_store.try_get("ab")) == (None, "3")


def test_a_text_that_another_thread_writes_is_waited_for_and_one_that_nobody_writes_is_none():
    threading.Timer(0.1, lambda: kv_store.put("late", "here")).start()
    assert kv_store.get("late", 20) == "here"
    assert kv_store.get("never", 0.05) is None


def test_each_increment_of_a_key_returns_its_own_number():
    assert [kv_store.increment("reads"), kv_store.increment("reads")] == [1, 2]


def test_nobody_is_missing_at_the_barrier_of_a_single_process():
    assert kv_store.barrier("start", 0.1) == []
    assert kv_store.alive() == {0}


THREE = """
import sys, threading, time
from engine.cluster import cluster_detection, kv_store as store, processes
processes.initialize(cluster_detection.resolve().who)
me = processes.index()
store.put(f"who/{me}", str(me * me))
assert store.alive() == {0, 1, 2}
assert store.barrier("told", 60) == []
assert store.entries("who") == {"0": "0", "1": "1", "2": "4"}, store.entries("who")
assert store.try_get("who/2") == "4" and store.try_get("who/3") is None and store.get("who/3", 0.1) is None
assert store.entries("nobody") == {}
counted = store.increment("counter")
assert store.barrier("counted", 60) == [] and store.try_get("counter") == "3" and counted in (1, 2, 3)
print("first", store.put_first("winner", str(me)))
assert store.get("winner", 60) in ("0", "1", "2")
assert store.barrier("told", 60) == []
if me == 1:
    store.delete("who")
    store.put("deleted", "")
assert store.get("deleted", 60) == "" and store.entries("who") == {}
if me != 1:  # process 1 does not come in time; it is looked for from another thread, too
    found = []
    thread = threading.Thread(target=lambda: found.append(store.barrier("late", 0.5)))
    thread.start()
    thread.join()
    assert found == [[1]], found
    store.put(f"waited/{me}", "")
else:
    assert store.get("waited/0", 60) == store.get("waited/2", 60) == ""
    assert store.barrier("late", 60) == []
for turn in range(20):
    assert store.barrier("often", 60) == []
assert store.barrier("end", 60) == []
print("left", len(store.entries("barrier/often")))
processes.leave()
try:
    store.put("after", "")
except store.CoordinationError as error:
    print("error", error)
"""


@pytest.mark.multiprocess
def test_three_processes_tell_each_other_and_name_who_is_missing():
    launcher = (
        f"import sys; from engine.launch.local import launch; "
        f"sys.exit(launch([sys.executable, '-c', {THREE!r}], processes=3))"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", launcher], capture_output=True, text=True, env=runs.environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 60
    told = [line[4:] for line in done.stdout.splitlines()]
    assert sorted(line for line in told if line.startswith("first")) == ["first False", "first False", "first True"]
    assert [line for line in told if line.startswith("left")] == ["left 3"] * 3  # those of the last turn alone
    assert sum(line.startswith("error this process has left the others") for line in told) == 3
