"""What processes tell each other beside the collectives: small texts under keys, and barriers that name who is missing.

Owns: the one access to the client that JAX keeps private, for which there is no public name. Does not own: agreement by
collectives and the loss of a peer (`peers.py`), or who one is (`processes.py`).

Every function may be called from any thread, also while the main thread waits inside JAX. The store lies in process 0
and lives as long as the attempt. A single process has a store of its own, so that callers need no case for it.

Terms. *Key*: words divided by `/`, as `watchdog/3/step`. *Folder*: the first words of keys, without the last `/`.
"""

import re
import threading
import time
from collections import Counter
from typing import Any

from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import count, index
from engine.config.errors import ConvoyError, first_line

_TOP = "convoy/"
_POLL_S = 0.05  # between two looks at who has come to a barrier: waiting for each in turn would be as many requests


class CoordinationError(ConvoyError):
    """Process 0, which keeps the store, does not answer."""

    exit_code = ExitStatus.RETRY
    from_outside = True


def put(key: str, value: str) -> None:
    """Writes a text under a key, over an earlier one.

    Raises:
        CoordinationError: the store is not reached; as every function here does.
    """
    if count() == 1:
        _alone.put(key, value)
    else:
        _ask("key_value_set", _TOP + key, value, allow_overwrite=True)


def put_first(key: str, value: str) -> bool:
    """Writes a text under a key that has none yet; whether it was the first. Of several processes one succeeds."""
    if count() == 1:
        return _alone.put(key, value, over=False)
    try:
        _ask("key_value_set", _TOP + key, value, allow_overwrite=False)
    except _Absent:
        return False
    return True


def get(key: str, timeout_s: float) -> str | None:
    """Returns the text under a key as soon as there is one; None when it does not come within `timeout_s` seconds."""
    if count() == 1:
        return _alone.get(key, timeout_s)
    try:
        return _ask("blocking_key_value_get", _TOP + key, max(1, int(timeout_s * 1000)))
    except _Absent:
        return None


def try_get(key: str) -> str | None:
    """Returns the text under a key, None where there is none now."""
    if count() == 1:
        return _alone.get(key, 0)
    try:
        return _ask("key_value_try_get", _TOP + key)
    except _Absent:
        return None


def entries(folder: str) -> dict[str, str]:
    """Returns the texts under all keys of a folder, by what stands after it: `{"3/step": "17"}`."""
    if count() == 1:
        return _alone.entries(folder)
    start = f"{_TOP}{folder}/"
    try:
        return {key.removeprefix(start): value for key, value in _ask("key_value_dir_get", start)}
    except _Absent:
        return {}


def delete(key: str) -> None:
    """Takes a key away, or all keys of a folder; nothing where there is none."""
    if count() == 1:
        _alone.delete(key)
    else:
        try:
            _ask("key_value_delete", _TOP + key)
        except _Absent:
            return


def increment(key: str) -> int:
    """Adds 1 to the number under a key, which begins at 0; returns the new one. Each process gets its own."""
    if count() == 1:
        return _alone.increment(key)
    return _ask("key_value_increment", _TOP + key, 1)


def alive() -> set[int]:
    """Returns the processes that JAX's heartbeats show to be alive; each takes part in the answer.

    It comes once all who are alive have asked as well: each asks from a thread, again and again. One that is paused
    keeps it back, until it goes on or counts as dead. Heartbeats need no Python: one that holds Python's lock is alive.
    """
    return {0} if count() == 1 else set(_ask("get_live_nodes", list(range(count()))))


_turns: Counter[str] = Counter()
_turns_lock = threading.Lock()


def barrier(name: str, timeout_s: float) -> list[int]:
    """Waits until every process has come here; returns the indices of those that did not, in order.

    Args:
        name: of the place. It may be passed again and again; every process passes it as often as the others.
        timeout_s: seconds to wait. A process that comes later finds those that have waited for it, and none missing.
    """
    if count() == 1:
        return []
    with _turns_lock:
        _turns[name] += 1
        turn = _turns[name]
    folder, end = f"barrier/{name}/{turn}", time.monotonic() + timeout_s
    put(f"{folder}/{index()}", "")
    while missing := sorted(set(range(count())) - {int(i) for i in entries(folder)}):
        if time.monotonic() >= end:
            return missing
        get(f"{folder}/{missing[0]}", min(1.0, end - time.monotonic()))
        time.sleep(_POLL_S if count() > 2 else 0.0)
    delete(f"barrier/{name}/{turn - 1}/{index()}")  # all are past that one
    return []


class _Absent(Exception):
    """There is no such key, it did not come in time, or it is there already."""


_ABSENT = re.compile(r"^(NOT_FOUND|DEADLINE_EXCEEDED|ALREADY_EXISTS)\b")


def _ask(method: str, *arguments: Any, **options: Any) -> Any:
    """Calls a method of JAX's client; every error of it is one of two kinds here."""
    import jax

    client = _client()
    try:
        return getattr(client, method)(*arguments, **options)
    except jax.errors.JaxRuntimeError as error:
        if _ABSENT.search(first_line(error)):
            raise _Absent from error
        raise CoordinationError(
            f"process 0, which keeps what the processes tell each other, does not answer ({first_line(error)}). The "
            "same command goes on from the newest checkpoint."
        ) from error


def _client() -> Any:
    """JAX's client of its coordination service, in which every process of a run has joined."""
    try:
        from jax._src import distributed  # private, here alone: JAX has no public name for it

        client = distributed.global_state.client
    except (ImportError, AttributeError) as error:
        raise RuntimeError(_moved(str(error))) from error
    if client is None:
        raise CoordinationError("this process has left the others already, so that nothing can be told them.")
    return client


def _moved(what: str) -> str:
    import jax

    return (
        f"jax {jax.__version__} keeps its distributed client elsewhere ({what}). Find its new place in the source of "
        "jax.distributed, and change engine/cluster/kv_store.py, the one file that uses it."
    )


class _Alone:
    """The store of a single process."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._changed = threading.Condition()

    def put(self, key: str, value: str, *, over: bool = True) -> bool:
        with self._changed:
            if key in self._texts and not over:
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


_alone = _Alone()
