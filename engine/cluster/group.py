"""Communication between processes: broadcast, scatter, gather, publish, decide, barrier, meet, StepAgreement.

Values are small plain JSON. They travel through the key-value store, never through devices, so any thread may call
these functions while the devices compute. A *topic* is any text, such as "save/0/17". On one topic, all processes must
make the same calls in the same order; different topics are independent, so threads may use them concurrently.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from engine.base.errors import ConvoyError
from engine.cluster import kv_store, shutdown, timeouts
from engine.cluster.identity import LISTED, count, index, is_primary, process_list
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer

_WAITING = "waiting"  # key next to the processes: those that the primary waits for in a gather
_lock = threading.Lock()
_calls: Counter[str] = Counter()  # number of calls by function and topic
_deleted: dict[str, int] = {}  # topic -> number of the latest gather whose values are deleted


class PrimaryError(ConvoyError):
    """An error that was raised on the primary, as raised in the other processes.

    `everywhere`: every process raises it, so that no process waits for the others at exit. `from_outside`: its reason
    lies outside the job, so that a restart may help.
    """

    def __init__(self, kind: str, text: str, code: int, everywhere: bool, from_outside: bool):
        self._kind, self.exit_code, self.everywhere, self.from_outside = kind, code, everywhere, from_outside
        super().__init__(text)

    @property
    def kind(self) -> str:
        """The type name of the error on the primary."""
        return self._kind


class Cancelled(Exception):
    """The caller's `cancelled()` became true during a wait."""


def _never() -> bool:
    return False


def broadcast[T](
    value: T, topic: str, timeout_s: float = timeouts.AGREE_S, *, cancelled: Callable[[], bool] = _never
) -> T:
    """Returns the primary's value in every process, converted to JSON and back: tuples become lists.

    The primary does not wait for the others. The `value` of other processes is ignored.

    Raises:
        LostPeer: the primary's value does not arrive within `timeout_s` seconds.
        Cancelled: `cancelled()` became true before it arrived.
    """
    key = _next_key("broadcast", topic)
    if is_primary():
        text = json.dumps(value)
        if count() > 1:
            kv_store.put(key, text)
        return json.loads(text)
    text = _wait(key, timeout_s, cancelled)
    if text is None:
        raise LostPeer(_late_text([0], topic, timeout_s))
    if kv_store.increment(f"{key}/reads") == count() - 1:
        kv_store.delete(key)  # every process has read it
    return json.loads(text)


def scatter[T](
    values: Sequence[T], topic: str, timeout_s: float = timeouts.AGREE_S, *, cancelled: Callable[[], bool] = _never
) -> T:
    """Returns the primary's `values[i]` in process i; each process reads only its value.

    The primary does not wait for the others. The `values` of other processes are ignored.

    Raises:
        LostPeer: the value does not arrive within `timeout_s` seconds.
        Cancelled: `cancelled()` became true before it arrived.
    """
    key = _next_key("scatter", topic)
    if is_primary():
        for process in range(1, count()):
            kv_store.put(f"{key}/{process}", json.dumps(values[process]))
        return json.loads(json.dumps(values[0]))
    key = f"{key}/{index()}"
    text = _wait(key, timeout_s, cancelled)
    if text is None:
        raise LostPeer(_late_text([0], topic, timeout_s))
    kv_store.delete(key)
    return json.loads(text)


def run_on_primary[T](work: Callable[[], T], topic: str, timeout_s: float = timeouts.AGREE_S) -> T:
    """Calls `work` on the primary only, and returns its result in every process.

    Raises:
        ConvoyError: `work` raised it; the other processes raise it as PrimaryError. Other exceptions are not forwarded.
        LostPeer: the primary has not answered within `timeout_s` seconds.
    """
    result: Any = None  # as JSON gives it, if another process sent it
    raised = None
    if is_primary():
        try:
            result = work()
        except ConvoyError as error:
            raised = error
            raised.everywhere = not isinstance(raised, LostPeer)  # a lost peer cannot raise it
    failure = raised and (raised.kind, str(raised), raised.exit_code, raised.everywhere, raised.from_outside)
    result, failure = broadcast((result, failure), topic, timeout_s)
    if raised is not None:
        raise raised
    if failure is not None:
        raise PrimaryError(*failure)
    return result


def gather[T](
    value: T,
    topic: str,
    timeout_s: float,
    *,
    enough: Callable[[Mapping[int, T]], bool] = lambda values: False,
    cancelled: Callable[[], bool] = _never,
) -> dict[int, T]:
    """Sends a value to the primary; returns `{process: value}` there, and {} immediately in the other processes.

    The primary waits until all values have arrived. It returns fewer values (`missing` returns the absent processes)
    when `timeout_s` seconds have passed, `enough(values)` is true, for example because a value reports a failure, or
    `cancelled()` is true. It never raises on a timeout.
    """
    key = _next_key("gather", topic)
    kv_store.put(f"{key}/{index()}", json.dumps(value))
    if not is_primary():
        return {}
    values: dict[int, T] = {}
    begin, longest, published = time.monotonic(), _slice_s(), False
    while absent := missing(values):
        read_at = time.monotonic()
        values |= {i: json.loads(text) for i, text in _texts(key) if i not in values}
        now = time.monotonic()
        if not (absent := missing(values)):
            break
        if enough(values) or cancelled() or now - begin >= timeout_s:
            return dict(sorted(values.items()))
        if now - begin > timeouts.WAITING_S:
            kv_store.put(f"{key}/{_WAITING}", json.dumps(absent[:LISTED]))
            published = True
        # All keys are read ever more rarely, so that N late values do not cost N reads of N keys.
        pause = max(
            timeouts.GATHER_POLL_S, (now - begin) * timeouts.GATHER_GROWTH, (now - read_at) * timeouts.GATHER_READS
        )
        _read_in_order(key, absent, min(now + min(pause, longest), begin + timeout_s), values)
    _delete_before(*_split_key(key))
    if published:
        kv_store.delete(f"{key}/{_WAITING}")
    return dict(sorted(values.items()))


def _read_in_order[T](key: str, absent: Sequence[int], end: float, values: dict[int, T]) -> None:
    """Adds absent values of a gather, one after the other, until `end`, which is a time of `time.monotonic`."""
    for process in absent:
        left = end - time.monotonic()
        if left <= 0 or (text := kv_store.get(f"{key}/{process}", left)) is None:
            return
        values[process] = json.loads(text)


def missing(values: Mapping[int, object]) -> list[int]:
    """Returns the processes without a value in the result of a gather, in order."""
    return [i for i in range(count()) if i not in values]


def peek(topic: str, call: int = 1) -> dict[int, object]:
    """Returns the values that have arrived so far for a gather. Never waits; any process may call it.

    Args:
        topic: topic of the gather.
        call: number of the gather on this topic, from 1.
    """
    return {i: json.loads(text) for i, text in _texts(f"group/gather/{topic}#{call}")}


def publish(value: object, topic: str) -> None:
    """Replaces the value of this process that `latest` returns. Never waits for another process."""
    kv_store.put(f"group/latest/{topic}/{index()}", json.dumps(value))


def latest(topic: str) -> dict[int, Any]:
    """Returns the newest published value of each process that has published one. Never waits; meant for the primary."""
    return {i: json.loads(text) for i, text in _texts(f"group/latest/{topic}")}


def decide[T, V](value: T, judge: Callable[[Mapping[int, T], list[int]], V], topic: str, timeout_s: float) -> V:
    """Calls `judge(values, missing)` on the primary only, and returns its result in every process.

    Args:
        value: value of this process.
        judge: receives the values by process, and the processes whose value has not arrived in time.
        topic: topic of the gather and of the answer.
        timeout_s: seconds for all values to arrive at the primary.

    Raises:
        ConvoyError: `judge` raised it; it is raised in every process.
        LostPeer: no answer arrives. It names the processes that the primary waits for, or the primary.
    """
    values = gather(value, topic, timeout_s)
    try:
        return run_on_primary(lambda: judge(values, missing(values)), topic, timeout_s + timeouts.VERDICT_S)
    except LostPeer as error:
        with _lock:
            call = _calls[f"group/gather/{topic}"]
        waiting = kv_store.try_get(f"group/gather/{topic}#{call}/{_WAITING}")
        raise LostPeer(_late_text(json.loads(waiting or "[0]"), topic, timeout_s)) from error


def barrier(topic: str, timeout_s: float) -> list[int]:
    """Waits until every process has called it; returns those that have not called it within `timeout_s` seconds.

    The result is the same in every process. It has at most `LISTED` processes, since every process receives it.

    Raises:
        LostPeer: the primary does not answer.
    """
    return decide(None, lambda values, absent: absent[:LISTED], topic, timeout_s)


def meet(topic: str, timeout_s: float = timeouts.AGREE_S) -> None:
    """Waits until every process has called it. Called before a program with collectives runs first.

    Raises:
        LostPeer: a process has not called it within `timeout_s` seconds.
    """
    if count() > 1 and (absent := barrier(topic, timeout_s)):
        raise LostPeer(_late_text(absent, topic, timeout_s))


def forget(topic: str) -> None:
    """Deletes the remaining values of a topic that no process uses any more. Every process calls it; none waits.

    Only topics with few calls, such as those of one save, need it. On a topic that is used again and again, each
    complete gather deletes the values of earlier gathers.
    """
    for function in ("broadcast", "gather", "scatter"):
        key = f"group/{function}/{topic}"
        with _lock:
            calls, deleted = _calls.pop(key, 0), _deleted.pop(key, 0)
        for call in range(deleted + 1, calls + 1) if is_primary() else ():
            kv_store.delete(f"{key}#{call}")


class StepAgreement:
    """Agreement on the step at which all processes act on a request of one process. A context manager.

    All processes call `reached` once per step, possibly at different times. After a request, each process reports how
    many steps it has passed, and its next call of `reached` waits. The primary answers with the greatest number, and
    every process acts at the step after it. Processes that are behind continue up to that step. A process that is ahead
    waits in `reached` meanwhile, so the steps up to the agreed one must finish with what it has already dispatched.

    Args:
        topic: used by this agreement only.
        on_agreed: called in a thread when the processes have agreed, or have ended without an agreement.
    """

    def __init__(self, topic: str, on_agreed: Callable[[], None]):
        self._topic, self._on_agreed = topic, on_agreed
        self._passed = 0  # number of steps
        self._agreed = math.inf  # the first step, counted from 1, at which `reached` is true
        self._request = ""  # request of this process
        self._closed = self._reported = False
        self._poll_s = kv_store.poll_period(timeouts.REQUEST_POLL_S, timeouts.LONGEST_REQUEST_POLL_S)
        self._wake = threading.Event()  # set by a request of this process and by the exit of the context
        self._lock = threading.Lock()  # held while a step passes and while processes agree
        self._thread = shutdown.RunThread(self._follow, "step-agreement")
        self.reason = ""
        """The reason of the request that all agreed on."""

    def __enter__(self) -> "StepAgreement":
        if count() > 1:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed = True
        self._wake.set()
        if count() > 1:
            self._thread.join()
            if not self._reported:
                with suppress(CoordinationError, Cancelled):  # a slower process may need it later
                    self._report()

    def request(self, reason: str) -> None:
        """Asks all processes to agree on a step. Any thread or signal handler may call it; never waits."""
        if self._request or self._closed:
            return  # `Event.set` is not reentrant, and this signal handler may interrupt another one inside it
        self._request = reason
        if count() == 1:
            self.reason, self._agreed = self._request, 0
        self._wake.set()

    def reached(self) -> bool:
        """Called before each step. Returns True, without counting the step, if it is the agreed step or a later one."""
        with self._lock:
            if self.is_next:
                return True
            self._passed += 1
            return False

    @property
    def is_next(self) -> bool:
        """Whether the next call of `reached` will return True."""
        return self._passed + 1 >= self._agreed

    def _follow(self) -> None:
        """The thread: waits for a request of any process, then agrees on the step."""
        key = f"group/request/{self._topic}"
        with suppress(CoordinationError):  # `peer_failure.py` reports the loss of process 0
            while not self._closed:
                if self._wake.wait(self._poll_s) and not self._closed:
                    kv_store.put_first(key, self._request)
                if (reason := kv_store.try_get(key)) is not None:
                    with self._lock, suppress(Cancelled):
                        self.reason, self._agreed = reason, self._report()
                    return self._on_agreed()

    def _report(self) -> float:
        """Sends the number of passed steps; returns the agreed step, or infinity if there is no agreement."""
        self._reported = True
        values = gather(self._passed, self._topic, timeouts.AGREE_S, cancelled=lambda: self._closed)
        if is_primary() and not self._closed and (absent := missing(values)):
            shutdown.end(LostPeer(_late_text(absent, self._topic, timeouts.AGREE_S)))
        agreed = math.inf if self._closed else max(values.values(), default=0) + 1
        try:  # with a longer timeout than the primary, which names the late process
            return broadcast(agreed, self._topic, 2 * timeouts.AGREE_S, cancelled=lambda: self._closed)
        except LostPeer as error:
            shutdown.end(error)


def _split_key(key: str) -> tuple[str, int]:
    """Returns the prefix of a key (function and topic) and the number of the call."""
    prefix, _, call = key.rpartition("#")
    return prefix, int(call)


def _next_key(function: str, topic: str) -> str:
    key = f"group/{function}/{topic}"
    with _lock:
        _calls[key] += 1
        return f"{key}#{_calls[key]}"


def _wait(key: str, timeout_s: float, cancelled: Callable[[], bool]) -> str | None:
    """Returns the value of a key as soon as it exists; None after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        if cancelled():
            raise Cancelled
        if (text := kv_store.get(key, min(_slice_s(), left))) is not None:
            return text
    return kv_store.try_get(key)


def _slice_s() -> float:
    return kv_store.poll_period(timeouts.SLICE_S, timeouts.LONGEST_SLICE_S)


def _texts(key: str) -> list[tuple[int, str]]:
    return sorted((int(i), text) for i, text in kv_store.entries(key).items() if i != _WAITING)


def _delete_before(prefix: str, call: int) -> None:
    """Deletes the values of gathers before `call`, in which every process has taken part, so none needs them."""
    with _lock:
        first, _deleted[prefix] = _deleted.get(prefix, 0) + 1, call - 1
    for earlier in range(first, call):
        kv_store.delete(f"{prefix}#{earlier}")


def _late_text(absent: list[int], topic: str, timeout_s: float) -> str:
    return (
        f"process {index()} has waited {timeout_s:g} s for {process_list(absent)} ({topic}). Check why "
        f"{'it is' if len(absent) == 1 else 'they are'} late, then start the same command again."
    )
