"""The key-value store of a run: small text values, and which processes are alive.

It wraps JAX's private distributed client, which no other file uses. Any thread may call these functions, also while the
main thread waits inside JAX. Process 0 hosts the store during the attempt; a single process uses an in-memory store. A
key consists of words separated by `/`; a *folder* is a prefix of keys that ends before a `/`.
"""

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from engine.base.errors import ConvoyError, first_line
from engine.cluster import timeouts
from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import count

_TOP = "convoy/"


class CoordinationError(ConvoyError):
    """Process 0, which hosts the store, does not answer."""

    exit_code = ExitStatus.RETRY
    from_outside = True


def put(key: str, value: str) -> None:
    """Sets the value of a key; replaces an existing value.

    Raises:
        CoordinationError: process 0 does not answer. Every function of this module raises it.
    """
    if count() == 1:
        _single.put(key, value)
    else:
        _request("key_value_set", _TOP + key, value, allow_overwrite=True)


def put_first(key: str, value: str) -> bool:
    """Sets the value of a key that does not exist; returns whether it did. Exactly one of several callers succeeds."""
    if count() == 1:
        return _single.put(key, value, replace=False)
    try:
        _request("key_value_set", _TOP + key, value, allow_overwrite=False)
    except _Absent:
        return False
    return True


def get(key: str, timeout_s: float) -> str | None:
    """Returns the value of a key as soon as it exists; None after `timeout_s` seconds."""
    if count() == 1:
        return _single.get(key, timeout_s)
    try:
        return _request("blocking_key_value_get", _TOP + key, max(1, int(timeout_s * 1000)))
    except _Absent:
        return None


def try_get(key: str) -> str | None:
    """Returns the value of a key; None if it does not exist."""
    if count() == 1:
        return _single.get(key, 0)
    try:
        return _request("key_value_try_get", _TOP + key)
    except _Absent:
        return None


def entries(folder: str) -> dict[str, str]:
    """Returns the values of a folder by the remainder of their keys: `{"3/step": "17"}`."""
    if count() == 1:
        return _single.entries(folder)
    start = f"{_TOP}{folder}/"
    try:
        return {key.removeprefix(start): value for key, value in _request("key_value_dir_get", start)}
    except _Absent:
        return {}


def delete(key: str) -> None:
    """Deletes a key, or all keys of a folder; does nothing if it does not exist."""
    if count() == 1:
        _single.delete(key)
    else:
        try:
            _request("key_value_delete", _TOP + key)
        except _Absent:
            return


def increment(key: str) -> int:
    """Adds 1 to the number of a key, which starts at 0, and returns the sum. Each caller gets a different number."""
    if count() == 1:
        return _single.increment(key)
    return _request("key_value_increment", _TOP + key, 1)


def alive(among: Iterable[int]) -> set[int]:
    """Returns which of some processes are alive according to JAX's heartbeats; this process must be one of them.

    It returns once all live processes of `among` have called it with the same processes, so each calls it repeatedly
    from a thread. A paused process delays it until it continues or counts as dead. Heartbeats need no GIL: a process
    whose GIL is held is alive. Each call lists `among` in both directions: keep it short.
    """
    return {0} if count() == 1 else set(_request("get_live_nodes", list(among)))


def poll_period(seconds: float, longest: float = math.inf, processes: int | None = None) -> float:
    """Returns the time between two requests that every process of the run repeats.

    It is `seconds` up to `timeouts.POLLING_PROCESSES` processes. With more, it grows with their number up to `longest`,
    so that process 0 does not answer more requests per second. `processes` is this number before they have joined.
    """
    factor = max(1.0, (processes or count()) / timeouts.POLLING_PROCESSES)
    return min(max(seconds, longest), seconds * factor)


def observe(observer: Callable[[str, tuple[Any, ...], Any], None] | None) -> None:
    """Calls `observer(method, arguments, answer)` after each request; None ends it. Only simulations use it.

    `method` is that of JAX's client. `answer` is None if the key does not exist or did not appear in time.
    """
    global _observer
    _observer = observer


_observer: Callable[[str, tuple[Any, ...], Any], None] | None = None


class _Absent(Exception):
    """The key does not exist, did not appear in time, or already exists."""


_ABSENT = re.compile(r"^(NOT_FOUND|DEADLINE_EXCEEDED|ALREADY_EXISTS)\b")
_CANCELLED = re.compile(r"^CANCELLED\b")
_ATTEMPTS = 40  # of a request that is cancelled


def _request(method: str, *arguments: object, **options: object) -> Any:
    """Calls a method of JAX's client; raises its errors as _Absent or CoordinationError.

    Some requests are cancelled where more than 1,000 wait for process 0. Those that may run twice are repeated.
    """
    once = method == "key_value_increment" or options.get("allow_overwrite") is False
    for attempt in itertools.count(1):
        try:
            return _call(method, *arguments, **options)
        except CoordinationError as error:
            if once or attempt == _ATTEMPTS or not _CANCELLED.search(str(error.__cause__)):
                raise
        time.sleep(min(timeouts.CANCELLED_S * 2**attempt, timeouts.LONGEST_CANCELLED_S))


def _call(method: str, *arguments: object, **options: object) -> Any:
    """Calls a method of JAX's client once."""
    import jax

    client, answer = _client(), None
    try:
        answer = getattr(client, method)(*arguments, **options)
        return answer
    except jax.errors.JaxRuntimeError as error:
        text = first_line(error)
        if _ABSENT.search(text):
            raise _Absent from error
        raise CoordinationError(
            f"process 0, which coordinates the processes, does not answer ({text}). The same command "
            "resumes from the newest checkpoint."
        ) from error
    finally:
        if _observer is not None:
            _observer(method, arguments, answer)


def _client() -> Any:
    """Returns JAX's client of its coordination service, which every process of a run has joined."""
    try:
        from jax._src import distributed  # private: JAX has no public name for it; no other file imports it

        client = distributed.global_state.client
    except (ImportError, AttributeError) as error:
        raise RuntimeError(_moved(str(error))) from error
    if client is None:
        raise CoordinationError("this process has already disconnected from the other processes of the run.")
    return client


def _moved(what: str) -> str:
    import jax

    return (
        f"jax {jax.__version__} has moved its distributed client ({what}). Find it in the source of jax.distributed, "
        "and change engine/cluster/kv_store.py, the only file that uses it."
    )


class _InMemoryStore:
    """The store of a single process, with the same functions."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._changed = threading.Condition()

    def put(self, key: str, value: str, *, replace: bool = True) -> bool:
        with self._changed:
            if key in self._texts and not replace:
                return False
            self._texts[key] = value
            self._changed.notify_all()
            return True

    def increment(self, key: str) -> int:
        with self._changed:
            self._texts[key] = str(int(self._texts.get(key, "0")) + 1)
            return int(self._texts[key])

    def get(self, key: str, timeout_s: float) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self._texts, timeout_s)
            return self._texts.get(key)

    def entries(self, folder: str) -> dict[str, str]:
        with self._changed:
            start = f"{folder}/"
            return {key.removeprefix(start): value for key, value in self._texts.items() if key.startswith(start)}

    def delete(self, key: str) -> None:
        with self._changed:
            for known in [k for k in self._texts if k == key or k.startswith(f"{key}/")]:
                del self._texts[known]


_single = _InMemoryStore()
