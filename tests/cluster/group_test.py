"""The process group: in a single process, and in three real processes that a launcher starts."""

import sys
import textwrap
import threading

import pytest

from engine.base.errors import RunError
from engine.cluster import group, kv_store
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.peer_failure import LostPeer
from tests import runs


@pytest.fixture(autouse=True)
def empty_store(monkeypatch):
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())


def test_operations_in_a_single_process():
    assert group.broadcast({"a": (1, None)}, "test") == {"a": [1, None]}  # as with several processes
    assert group.gather("x", "test", 1) == {0: "x"}
    assert group.barrier("test", 1) == []
    assert group.decide(3, lambda values, missing: [values[0], missing], "test", 1) == [3, []]
    assert group.run_on_primary(lambda: [1], "test") == [1]
    assert group.scatter([(1, "x")], "test") == [1, "x"]
    assert group.latest("test") == {}
    for value in (1, 2):
        group.publish([value], "test")
    assert group.latest("test") == {0: [2]}


def test_values_must_be_json():
    with pytest.raises(TypeError):
        group.broadcast({1, 2}, "test")


def test_run_on_primary_marks_errors_as_raised_everywhere():
    def fail() -> None:
        raise RunError("runs/a: another job trains here.")

    with pytest.raises(RunError) as raised:
        group.run_on_primary(fail, "test")
    assert raised.value.everywhere


def test_store_of_a_single_process_does_not_grow():
    for _ in range(100):
        group.broadcast(1, "test")
        group.barrier("test", 1)
    assert len(kv_store.entries("group")) <= 2
    group.forget("test")
    assert kv_store.entries("group") == {}


def test_gather_returns_early_when_cancelled_or_enough(monkeypatch):
    monkeypatch.setattr(group, "count", lambda: 2)
    assert group.gather("x", "test", 60, cancelled=lambda: True) == {0: "x"}
    assert group.gather("bad", "test", 60, enough=lambda values: "bad" in values.values()) == {0: "bad"}
    assert group.missing({0: "x"}) == [1]
    kv_store.put("group/gather/later#1/1", '"y"')
    assert group.peek("later") == {1: "y"}


def test_gather_of_late_values_reads_each_value_a_few_times(monkeypatch):
    """Whenever the primary waits for a process, one more process arrives."""
    monkeypatch.setattr(group, "count", lambda: 500)
    arriving, read, get, entries = iter(range(1, 500)), [], kv_store.get, kv_store.entries

    def get_late(key, timeout_s):
        kv_store.put(f"group/gather/late#1/{next(arriving)}", "1")
        return get(key, timeout_s)

    def count_entries(folder):
        found = entries(folder)
        read.append(len(found))
        return found

    monkeypatch.setattr(kv_store, "get", get_late)
    monkeypatch.setattr(kv_store, "entries", count_entries)
    assert group.gather(1, "late", 60) == dict.fromkeys(range(500), 1)
    assert sum(read) <= 20 * 500


def test_barrier_returns_few_of_many_missing_processes(monkeypatch):
    monkeypatch.setattr(group, "count", lambda: 500)
    monkeypatch.setattr(kv_store, "count", lambda: 1)
    assert group.barrier("test", 0) == list(range(1, 17))


def test_cancelled_or_late_broadcast_raises(monkeypatch):
    monkeypatch.setattr(group, "is_primary", lambda: False)
    monkeypatch.setattr("engine.cluster.identity._joined", ProcessInfo(1, 2, "127.0.0.1:1"))
    monkeypatch.setattr(kv_store, "count", lambda: 1)
    with pytest.raises(group.Cancelled):
        group.broadcast(None, "test", 60, cancelled=lambda: True)
    with pytest.raises(
        LostPeer, match=r"^process 1 has waited 0\.1 s for process 0 \(the list\)\. Check why it is late"
    ):
        group.broadcast(None, "the list", 0.1)


def test_nested_topics_are_independent():
    group.gather("x", "nested/0", 1)
    group.gather("y", "nested/0/1", 1)
    assert (group.peek("nested/0"), group.peek("nested/0/1")) == ({0: "x"}, {0: "y"})


def test_single_process_agrees_on_its_next_step():
    with group.StepAgreement("test", lambda: None) as agreement:
        assert not agreement.reached() and not agreement.is_next
        agreement.request("why")
        assert agreement.is_next and agreement.reached() and agreement.reached()
        assert agreement.reason == "why"


@pytest.mark.parametrize("passed", [0, 2])
def test_request_before_the_first_step_is_agreed_on_with_a_process_that_has_passed_some(monkeypatch, passed):
    monkeypatch.setattr(group, "count", lambda: 2)
    topic, agreed = f"stop/{passed}", threading.Event()
    kv_store.put(f"group/gather/{topic}#1/1", str(passed))  # the report of process 1
    with group.StepAgreement(topic, agreed.set) as agreement:
        assert not agreement.is_next
        agreement.request("why")
        assert agreed.wait(60)
        assert agreement.is_next == (passed == 0)
        assert [agreement.reached() for _ in range(4)] == [step >= passed for step in range(4)]
        assert (agreement.is_next, agreement.reason) == (True, "why")


def launch(code: str) -> list[str]:
    """Runs a program in three processes and returns the lines that they print, sorted, as "[index] text"."""
    program = (
        "import sys, threading, time\n"
        "from engine.cluster import cluster_detection, group, kv_store, processes, processes\n"
        "from engine.base.errors import RunError\n"
        "processes.initialize(cluster_detection.detect().process)\n"
        "me = group.index()\n"
        f"{textwrap.dedent(code)}\n"
        "sys.stdout.flush()\n"
        "processes.leave()\n"
    )
    launcher = (
        f"import sys; from engine.launch.local import launch; "
        f"sys.exit(launch([sys.executable, '-c', {program!r}], processes=3))"
    )
    done = runs.run([sys.executable, "-c", launcher])
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.multiprocess
def test_three_processes_exchange_values_and_name_a_missing_process():
    lines = launch(
        """
        def show(*words):
            print(*words, flush=True)

        show("value", group.broadcast({"from": me, "text": "é" * 3}, "value"))
        show("gathered", group.gather(me * me, "squares", 60))
        show("scattered", group.scatter(["a", "b", "c"] if me == 0 else [], "share"))
        show("verdict", group.decide(me, lambda values, missing: [sum(values.values()), missing], "sum", 60))

        def fail():
            raise RunError("runs/a: taken.")
        try:
            group.run_on_primary(fail, "work")
        except Exception as error:
            show("error", type(error).__name__, error.kind, error, error.everywhere)

        if me != 1:  # process 1 comes late
            begin = time.monotonic()
            show("missing", group.barrier("late", 1.0), time.monotonic() - begin < 30)
            kv_store.put(f"waited/{me}", "")
        else:
            assert kv_store.get("waited/0", 60) == kv_store.get("waited/2", 60) == ""
            show("missing", group.barrier("late", 60), True)
        show("then", group.barrier("late", 60))
        """
    )
    for i in range(3):
        kind = "RunError" if i == 0 else "PrimaryError"
        assert [line for line in lines if line.startswith(f"[{i}]")] == sorted(
            f"[{i}] {text}"
            for text in (
                "value {'from': 0, 'text': 'ééé'}",
                f"gathered {'{0: 0, 1: 1, 2: 4}' if i == 0 else '{}'}",
                f"scattered {'abc'[i]}",
                "verdict [3, []]",
                f"error {kind} RunError runs/a: taken. True",
                "missing [1] True",
                "then []",
            )
        )


@pytest.mark.multiprocess
def test_barrier_error_names_a_missing_primary_and_the_peer_it_waits_for():
    lines = launch(
        """
        group.timeouts = type("Shorter", (), {**vars(group.timeouts), "VERDICT_S": 1.0})
        if me:
            try:
                group.barrier("a", 0.5)
            except Exception as error:
                print(error, flush=True)
            kv_store.put(f"timed out/{me}", "")
        else:
            assert kv_store.get("timed out/1", 60) == kv_store.get("timed out/2", 60) == ""
            assert group.barrier("a", 60) == []
        if me == 0:
            group.barrier("b", 4.0)
        elif me == 1:
            try:
                group.barrier("b", 0.5)
            except Exception as error:
                print(error, flush=True)
            kv_store.put("timed out", "")
        else:
            assert kv_store.get("timed out", 60) == ""
            group.barrier("b", 4.0)
        """
    )
    wait = "has waited 0.5 s for process"
    rest = "Check why it is late, then start the same command again."
    assert lines == [f"[1] process 1 {wait} 0 (a). {rest}", f"[1] process 1 {wait} 2 (b). {rest}",
                     f"[2] process 2 {wait} 0 (a). {rest}"]  # fmt: skip


@pytest.mark.multiprocess
def test_concurrent_topics_are_independent_and_the_store_does_not_grow():
    lines = launch(
        """
        def exchange(topic):
            for call in range(100):
                assert group.broadcast([topic, call, me], topic) == [topic, call, 0]
                verdict = group.decide([topic, call], lambda values, missing: list(values.values()), topic, 60)
                assert verdict == [[topic, call]] * 3, verdict
            finished.append(topic)

        finished = []
        threads = [threading.Thread(target=exchange, args=(topic,)) for topic in ("a", "b", "a/1")]
        for thread in threads:
            thread.start()
        for call in range(1000):
            assert group.broadcast(call * (me == 0), "many") == call
        for thread in threads:
            thread.join()
        assert sorted(finished) == ["a", "a/1", "b"]
        group.barrier("end", 60)
        group.barrier("end", 60)
        if me == 0:
            left = kv_store.entries("group")
            assert len(left) <= 2 * 3 * 4, left  # at most two gathers per topic, and no broadcast
            assert not any(key.startswith("broadcast/many") for key in left), left
            print("bounded", flush=True)
        group.forget("a")
        """
    )
    assert lines == ["[0] bounded"]


@pytest.mark.multiprocess
def test_step_agreement_returns_the_same_step_in_all_processes():
    lines = launch(
        """
        for number in range(3):
            with group.StepAgreement(f"stop/{number}", lambda: None) as agreement:
                steps = 0
                while not agreement.reached():
                    steps += 1
                    time.sleep(0.002 * (1 + me))
                    if me == 2 and steps == 20:
                        agreement.request("two")
                assert agreement.reached() and agreement.reason == "two"
                seen = group.gather(steps, "steps", 60)
            assert len(set(seen.values())) < 2, seen
        with group.StepAgreement("never", lambda: None) as agreement:
            while not agreement.reached() and steps < 10000:
                if me == 0:  # it leaves before another process makes a request
                    break
                steps += 1
                time.sleep(0.1)
                if me == 1:
                    agreement.request("late")
                if agreement._reported:
                    break
            print("left", agreement.is_next, flush=True)
        """
    )
    assert lines == [f"[{i}] left False" for i in range(3)]
