"""The key-value store of a single process and of three processes."""

import sys
import threading
import time

import jax
import pytest

from engine.cluster import kv_store, timeouts
from tests import runs


@pytest.fixture(autouse=True)
def empty_store(monkeypatch):
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())


def test_private_client_of_jax_has_every_method_used():
    """Fails with instructions if a new jax moves the client or one of its methods."""
    from jax._src import distributed
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    used = [
        "key_value_set", "blocking_key_value_get", "key_value_try_get", "key_value_dir_get", "key_value_delete",
        "key_value_increment", "get_live_nodes",
    ]  # fmt: skip
    missing = [name for name in used if not hasattr(_jax.DistributedRuntimeClient, name)]
    assert hasattr(distributed.global_state, "client") and not missing, kv_store._moved(f"missing: {missing}")
    assert jax.__version__ in kv_store._moved("x")


def test_missing_client_raises(monkeypatch):
    from jax._src import distributed

    monkeypatch.delattr(distributed.State, "client")
    with pytest.raises(RuntimeError, match=r"has moved its distributed client .*change engine/cluster/kv_store"):
        kv_store._client()


def test_in_memory_store_of_a_single_process():
    kv_store.put("a/0/step", "1")
    kv_store.put("a/0/step", "2")
    kv_store.put("ab", "3")
    assert kv_store.try_get("a/0/step") == "2"
    assert kv_store.entries("a") == {"0/step": "2"}
    assert not kv_store.put_first("ab", "4") and kv_store.put_first("c", "5")
    kv_store.delete("a")
    kv_store.delete("nothing")
    assert (kv_store.try_get("a/0/step"), kv_store.try_get("ab")) == (None, "3")


def test_get_waits_for_another_thread_and_returns_none_after_the_timeout():
    threading.Timer(0.1, lambda: kv_store.put("late", "here")).start()
    assert kv_store.get("late", 20) == "here"
    assert kv_store.get("never", 0.05) is None


def test_increment_returns_consecutive_numbers():
    assert [kv_store.increment("reads"), kv_store.increment("reads")] == [1, 2]


def test_single_process_is_alive():
    assert kv_store.alive([0]) == {0}


def test_many_processes_poll_less_often(monkeypatch):
    for count, period, limited in ((1, 1.0, 1.0), (250, 1.0, 1.0), (500, 2.0, 2.0), (10_000, 40.0, 2.0)):
        monkeypatch.setattr(kv_store, "count", lambda count=count: count)
        assert (kv_store.poll_period(1.0), kv_store.poll_period(1.0, 2.0)) == (period, limited)


def test_observer_sees_each_request(monkeypatch):
    """The store of a single process sends no request."""

    class Client:
        def key_value_set(self, key, value, allow_overwrite):
            pass

    seen = []
    monkeypatch.setattr(kv_store, "count", lambda: 2)
    monkeypatch.setattr(kv_store, "_client", Client)
    kv_store.observe(lambda *request: seen.append(request))
    kv_store.put("a", "1")
    kv_store.observe(None)
    kv_store.put("a", "2")
    assert seen == [("key_value_set", ("convoy/a", "1"), None)]


THREE = """
import sys, threading, time
from engine.cluster import cluster_detection, group, kv_store as store, processes
processes.initialize(cluster_detection.detect().process)
me = group.index()
store.put(f"who/{me}", str(me * me))
assert store.alive({0, 1, 2}) == {0, 1, 2}
assert group.barrier("written", 60) == []
assert store.entries("who") == {"0": "0", "1": "1", "2": "4"}, store.entries("who")
assert store.try_get("who/2") == "4" and store.try_get("who/3") is None and store.get("who/3", 0.1) is None
assert store.entries("nobody") == {}
counted = store.increment("counter")
assert group.barrier("counted", 60) == [] and store.try_get("counter") == "3" and counted in (1, 2, 3)
print("first", store.put_first("winner", str(me)))
assert store.get("winner", 60) in ("0", "1", "2")
assert group.barrier("written", 60) == []
if me == 1:
    store.delete("who")
    store.put("deleted", "")
assert store.get("deleted", 60) == "" and store.entries("who") == {}
processes.leave()
try:
    store.put("after", "")
except store.CoordinationError as error:
    print("error", error)
"""


@pytest.mark.multiprocess
def test_three_processes_share_one_store_until_they_leave():
    launcher = (
        f"import sys; from engine.launch.local import launch; "
        f"sys.exit(launch([sys.executable, '-c', {THREE!r}], processes=3))"
    )
    begin = time.monotonic()
    done = runs.run([sys.executable, "-c", launcher])
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < runs.limit(60)
    lines = [line[4:] for line in done.stdout.splitlines()]
    assert sorted(line for line in lines if line.startswith("first")) == ["first False", "first False", "first True"]
    assert sum(line.startswith("error this process has already disconnected") for line in lines) == 3


class Cancelling:
    """A client some of whose requests are cancelled, as happens where more than 1,000 wait."""

    def __init__(self, times):
        self.left, self.calls = times, 0

    def answer(self, *arguments, **options):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise jax.errors.JaxRuntimeError("CANCELLED: CANCELLED\nAdditional GRPC error information")
        return "7"

    blocking_key_value_get = key_value_try_get = key_value_increment = answer


def test_cancelled_request_is_repeated_unless_it_could_count_twice(monkeypatch):
    monkeypatch.setattr(kv_store, "count", lambda: 2)
    monkeypatch.setattr(timeouts, "CANCELLED_S", 0.0)
    for request in (lambda: kv_store.get("x", 60), lambda: kv_store.try_get("x")):
        client = Cancelling(2)
        monkeypatch.setattr(kv_store, "_client", lambda client=client: client)
        assert (request(), client.calls) == ("7", 3)
    for request, calls in ((lambda: kv_store.increment("x"), 1), (lambda: kv_store.try_get("x"), 40)):
        client = Cancelling(1000)
        monkeypatch.setattr(kv_store, "_client", lambda client=client: client)
        with pytest.raises(kv_store.CoordinationError, match="CANCELLED"):
            request()
        assert client.calls == calls
