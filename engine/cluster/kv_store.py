"""The key-value store of a run: small texts under keys, and which processes are alive.

It wraps the distributed client that JAX keeps private; no other file touches it. Every function may be called from any
thread, also while the main thread waits inside JAX. The store lies in process 0 and lives as long as the attempt. A
single process has a store of its own. A key is words divided by `/`; a folder is the first words of keys.
"""

import re
import threading
from typing import Any

from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import count
from engine.config.errors import ConvoyError, first_line

_TOP = "convoy/"


class CoordinationError(ConvoyError):
    """Process 0, which keeps the store, does not answer."""

    exit_code = ExitStatus.RETRY
    from_outside = True


def put(key: str, value: str) -> None:
    """Writes a text under a key, over an earlier one.

    Raises:
        CoordinationError: process 0 does not answer. Every function here raises it.
    """
    if count() == 1:
        _alone.put(key, value)
    else:
        _ask("key_value_set", _TOP + key, value, allow_overwrite=True)


def put_first(key: str, value: str) -> bool:
    """Writes a text under a key that has none yet; returns whether it did. Of several processes one succeeds."""
    if count() == 1:
        return _alone.put(key, value, over=False)
    try:
        _ask("key_value_set", _TOP + key, value, allow_overwrite=False)
    except _Absent:
        return False
    return True


def get(key: str, timeout_s: float) -> str | None:
    """Returns the text under a key as soon as there is one; None after `timeout_s` seconds without one."""
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
    """Returns the texts of a folder by the rest of their keys: `{"3/step": "17"}`."""
    if count() == 1:
        return _alone.entries(folder)
    start = f"{_TOP}{folder}/"
    try:
        return {key.removeprefix(start): value for key, value in _ask("key_value_dir_get", start)}
    except _Absent:
        return {}


def delete(key: str) -> None:
    """Deletes a key, or all keys of a folder; a missing one is no error."""
    if count() == 1:
        _alone.delete(key)
    else:
        try:
            _ask("key_value_delete", _TOP + key)
        except _Absent:
            return


def increment(key: str) -> int:
    """Adds 1 to the number under a key, which starts at 0, and returns the sum. No two callers get the same one."""
    if count() == 1:
        return _alone.increment(key)
    return _ask("key_value_increment", _TOP + key, 1)


def alive() -> set[int]:
    """Returns the processes that are alive by JAX's heartbeats.

    It returns once all living processes have called it too, so each calls it from a thread, again and again. A paused
    process delays it until it continues or counts as dead. Heartbeats need no Python: a process whose Python lock is
    held is alive.
    """
    return {0} if count() == 1 else set(_ask("get_live_nodes", list(range(count()))))


class _Absent(Exception):
    """The key does not exist, did not appear in time, or exists already."""


_ABSENT = re.compile(r"^(NOT_FOUND|DEADLINE_EXCEEDED|ALREADY_EXISTS)\b")


def _ask(method: str, *arguments: object, **options: object) -> Any:
    """Calls a method of JAX's client; turns its errors into _Absent or CoordinationError."""
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
    """Returns JAX's client of its coordination service, which every process of a run has joined."""
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
    """The store of a single process, with the same functions."""

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
