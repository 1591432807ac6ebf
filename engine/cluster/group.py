"""How the processes of a run agree: broadcast, gather, one verdict for all, barriers, a common step.

Values are small plain JSON. They travel through the key-value store and never through devices, so every function may be
called from any thread while the devices compute. A single process runs the same code with a store of its own.

A topic is any text, such as "save/0/17". Each process calls each function equally often and in the same order on one
topic; topics are independent, so threads that use different ones do not disturb each other. Error texts name the topic.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from engine.cluster import kv_store, shutdown, timeouts
from engine.cluster.identity import count, index, is_primary
from engine.cluster.kv_store import CoordinationError
from engine.cluster.peer_failure import LostPeer
from engine.cluster.rendezvous import name
from engine.config.errors import ConvoyError

_lock = threading.Lock()
_turns: Counter[str] = Counter()  # calls so far, by function and topic
_deleted: dict[str, int] = {}  # the newest turn of a gather whose values are deleted


class PrimaryError(ConvoyError):
    """An error of the primary's work, in the other processes."""

    def __init__(self, kind: str, text: str, code: int, everywhere: bool, from_outside: bool):
        self._kind, self.exit_code, self.everywhere, self.from_outside = kind, code, everywhere, from_outside
        super().__init__(text)

    @property
    def kind(self) -> str:
        """The name of the error in the primary."""
        return self._kind


class Cancelled(Exception):
    """The caller's `cancelled()` became true during a wait."""


def _never() -> bool:
    return False


def broadcast[T](
    value: T, topic: str, timeout_s: float = timeouts.AGREE_S, *, cancelled: Callable[[], bool] = _never
) -> T:
    """Returns the primary's value in every process, as JSON holds it: tuples become lists.

    The primary does not wait for the others. Their own `value` is ignored.

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
    """Returns in process i the primary's `values[i]`; each process reads its own value only.

    The primary does not wait for the others. Their own `values` are ignored.

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
    """Returns in every process what `work`, which the primary alone calls, returns there.

    Raises:
        ConvoyError: raised by `work`; in every process.
        LostPeer: the primary has not answered within `timeout_s` seconds.
    """
    result, raised = None, None
    if is_primary():
        try:
            result = work()
        except ConvoyError as error:
            raised = error
            raised.everywhere = not isinstance(raised, LostPeer)  # no process waits for the others to end with it then
    failure = raised and (raised.kind, str(raised), raised.exit_code, raised.everywhere, raised.from_outside)
    result, failure = broadcast((result, failure), topic, timeout_s)
    if raised is not None:
        raise raised
    if failure is not None:
        raise PrimaryError(*failure)
    return result  # pyright: ignore[reportReturnType]


def gather[T](
    value: T,
    topic: str,
    timeout_s: float,
    *,
    enough: Callable[[Mapping[int, T]], bool] = lambda values: False,
    cancelled: Callable[[], bool] = _never,
) -> dict[int, T]:
    """Sends a value to the primary; returns `{process: value}` there, and {} at once in the others.

    The primary waits until all processes have sent theirs. The result lacks some (`missing` names them) when
    `timeout_s` seconds have passed, `enough(values)` is true, as when a value reports a failure, or `cancelled()` is.
    """
    key = _next_key("gather", topic)
    kv_store.put(f"{key}/{index()}", json.dumps(value))
    if not is_primary():
        return {}
    end = time.monotonic() + timeout_s
    while True:
        values: dict[int, T] = {i: json.loads(text) for i, text in _texts(key)}
        absent = missing(values)
        if not absent:
            _delete_before(*_topic_and_turn(key))
            return values
        if enough(values) or cancelled() or (left := end - time.monotonic()) <= 0:
            return values
        if kv_store.get(f"{key}/{absent[0]}", min(timeouts.SLICE_S, left)) is not None and len(absent) > 1:
            time.sleep(timeouts.GATHER_POLL_S)


def missing(values: Mapping[int, object]) -> list[int]:
    """Returns the processes of which a gather has no value, in order."""
    return [i for i in range(count()) if i not in values]


def peek(topic: str, turn: int = 1) -> dict[int, object]:
    """Returns what has arrived so far for a gather; never waits, and may be called in any process.

    Args:
        topic: of the gather.
        turn: number of the gather under this topic, from 1.
    """
    return {i: json.loads(text) for i, text in _texts(f"group/gather/{topic}#{turn}")}


def decide[T, V](value: T, judge: Callable[[Mapping[int, T], list[int]], V], topic: str, timeout_s: float) -> V:
    """Returns in every process the verdict of `judge(values, missing)`, which the primary alone calls.

    Args:
        value: of this process.
        judge: gets the values of all processes and the numbers of those that sent none in time.
        topic: for both directions.
        timeout_s: seconds for all values to arrive at the primary.

    Raises:
        ConvoyError: raised by `judge`; in every process.
        LostPeer: no verdict arrives; it names the processes that the primary waits for, or the primary.
    """
    values = gather(value, topic, timeout_s)
    try:
        return run_on_primary(lambda: judge(values, missing(values)), topic, timeout_s + timeouts.VERDICT_S)
    except LostPeer as error:
        with _lock:
            turn = _turns[f"group/gather/{topic}"]
        absent = missing(peek(topic, turn))
        raise LostPeer(_late_text(absent or [0], topic, timeout_s)) from error


def barrier(topic: str, timeout_s: float) -> list[int]:
    """Waits until every process has called it; returns those that did not come within `timeout_s`, the same in all.

    Raises:
        LostPeer: the primary itself does not answer.
    """
    return decide(None, lambda values, absent: absent, topic, timeout_s)


def forget(topic: str) -> None:
    """Deletes what is left of a topic that no process uses any more. Each process calls it, with no exchange.

    Only topics that are used once or twice, such as one per save, need it: other topics delete their own past.
    """
    for function in ("broadcast", "gather", "scatter"):
        key = f"group/{function}/{topic}"
        with _lock:
            turns, deleted = _turns.pop(key, 0), _deleted.pop(key, 0)
        for turn in range(deleted + 1, turns + 1) if is_primary() else ():
            kv_store.delete(f"{key}#{turn}")


class StepAgreement:
    """The step at which all processes do what one of them asked for. A context manager.

    All processes call `reached` at the same steps in the same order, each perhaps at another time. After a request each
    process reports how many steps it has passed, and waits in its next call of `reached`. The primary answers with the
    greatest number; every process acts at the step after it. Processes that are behind still get there, as long as no
    process needs more of the others for a step than they have done before the steps that they passed.

    Args:
        topic: of this agreement alone.
        on_agreed: called in a thread when the step is known.
    """

    def __init__(self, topic: str, on_agreed: Callable[[], None]):
        self._topic, self._on_agreed = topic, on_agreed
        self._passed = 0  # steps
        self._agreed = math.inf  # the step, counted from 1, from which on `reached` is true
        self._request = ""  # of this process
        self._closed = self._reported = False
        self._wake = threading.Event()  # on a request of this process, and when the context is left
        self._lock = threading.Lock()  # held while a step passes and while processes agree
        self._thread = threading.Thread(target=self._follow, name="step-agreement", daemon=True)
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
                with suppress(CoordinationError, Cancelled):  # for those that are behind and get a request only now
                    self._report()

    def request(self, reason: str) -> None:
        """Asks all processes to agree on a step. Any thread or signal handler may call it; never waits."""
        if self._request or self._closed:
            return  # a handler that interrupts another one inside `set`, which holds a lock, must not call it again
        self._request = reason
        if count() == 1:
            self.reason, self._agreed = self._request, 0
        self._wake.set()

    def reached(self) -> bool:
        """Passes a step; returns whether it is the agreed one or later. The same answer in every process."""
        with self._lock:
            if self.is_next:
                return True
            self._passed += 1
            return False

    @property
    def is_next(self) -> bool:
        """Whether the next call of `reached` is known to be true."""
        return self._passed + 1 >= self._agreed

    def _follow(self) -> None:
        """The thread: waits for a request of any process, then agrees with all."""
        key = f"group/request/{self._topic}"
        with suppress(CoordinationError):  # the loss of process 0 is reported by `peer_failure.py`
            while not self._closed:
                if self._wake.wait(timeouts.REQUEST_POLL_S) and not self._closed:
                    kv_store.put_first(key, self._request)
                if (reason := kv_store.try_get(key)) is not None:
                    with self._lock, suppress(Cancelled):
                        self.reason, self._agreed = reason, self._report()
                    return self._on_agreed()

    def _report(self) -> float:
        """Sends the number of passed steps; returns the agreed step, infinity where there is none."""
        self._reported = True
        values = gather(self._passed, self._topic, timeouts.AGREE_S, cancelled=lambda: self._closed)
        if is_primary() and not self._closed and (absent := missing(values)):
            shutdown.end(LostPeer(_late_text(absent, self._topic, timeouts.AGREE_S)))
        agreed = math.inf if self._closed else max(values.values(), default=0) + 1
        try:  # with more time than the primary, which names the process that is late
            return broadcast(agreed, self._topic, 2 * timeouts.AGREE_S, cancelled=lambda: self._closed)
        except LostPeer as error:
            shutdown.end(error)


def _topic_and_turn(key: str) -> tuple[str, int]:
    topic, _, turn = key.rpartition("#")
    return topic, int(turn)


def _next_key(function: str, topic: str) -> str:
    key = f"group/{function}/{topic}"
    with _lock:
        _turns[key] += 1
        return f"{key}#{_turns[key]}"


def _wait(key: str, timeout_s: float, cancelled: Callable[[], bool]) -> str | None:
    """The text under a key as soon as there is one, None when the time is up."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        if cancelled():
            raise Cancelled
        if (text := kv_store.get(key, min(timeouts.SLICE_S, left))) is not None:
            return text
    return kv_store.try_get(key)


def _texts(key: str) -> list[tuple[int, str]]:
    return sorted((int(i), text) for i, text in kv_store.entries(key).items())


def _delete_before(topic: str, turn: int) -> None:
    """Deletes the values of earlier gathers: all processes have sent theirs to this one, so they are past those."""
    with _lock:
        first, _deleted[topic] = _deleted.get(topic, 0) + 1, turn - 1
    for earlier in range(first, turn):
        kv_store.delete(f"{topic}#{earlier}")


def _late_text(absent: list[int], topic: str, timeout_s: float) -> str:
    return (
        f"process {index()} has waited {timeout_s:g} s for {name(absent)} ({topic}). See what holds "
        f"{'it' if len(absent) == 1 else 'them'} up, then start the same command again."
    )
