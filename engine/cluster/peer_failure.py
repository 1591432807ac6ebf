"""How the end of one process becomes the end of all: the cause is told, a dead one is noticed, nobody waits in vain.

Owns: what a process that ends alone leaves to the others in the store of `kv_store.py`, and the threads that look
for such an end and for peers without heartbeat while the main thread is anywhere. Does not own: the launcher's way of
telling (`shutdown.py`), or what JAX raises in the main thread (`peers.py`).

Terms. *Cause*: the verdict of the process that was the first to end alone; what ends after it, ends because of it.
*Dead*: without heartbeat for HEARTBEAT_S seconds, as a killed process, a stopped one, or one on a lost host.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict

from engine.cluster import exit_codes, kv_store, shutdown, timeouts
from engine.cluster.identity import count, index, is_primary
from engine.cluster.kv_store import CoordinationError
from engine.cluster.rendezvous import name
from engine.cluster.shutdown import Verdict
from engine.config.errors import ConvoyError

_LAST_STEP_S = 0.5  # from a process's word that it ends to its end: without process 0 it would be one by SIGABRT
LOOK_S = 1.0  # between two looks for a cause and for the dead
_MAIN_S = 2.0  # for the main thread, which knows more, to tell of the same end
_FAREWELL_S = 3.0  # process 0 goes last, as the store goes with it; so long for the others to have read why


class LostPeer(ConvoyError):
    """Another process of the run is gone; `exit_code` is that of its verdict, where it gave one."""

    exit_code = exit_codes.RETRY
    from_outside = True


def lost(cause: Verdict | None, what: str) -> LostPeer:
    """Returns the error for the end of another process.

    Args:
        cause: its verdict, where it left one.
        what: what is known without one: "process 3 is gone".
    """
    if cause is None:
        return LostPeer(f"{what}. Its own output says more; the same command goes on from the newest checkpoint.")
    error = LostPeer(f"process {cause.index} ended this run: {cause.line}")
    error.exit_code = cause.code
    return error


def tell_others(code: int, text: str) -> None:
    """Leaves to the others why this process ends alone; process 0 waits until they have read it, or for 3 s."""
    if count() == 1:
        return
    verdict = Verdict(index(), code, text.rstrip(), time.monotonic())
    with suppress(CoordinationError):
        kv_store.put_first("cause", json.dumps(asdict(verdict)))
        kv_store.put(f"ended/{index()}", "")
        if is_primary():
            end = time.monotonic() + _FAREWELL_S
            while time.monotonic() < end and len(kv_store.entries("ended")) < count():
                time.sleep(0.05)
            time.sleep(_LAST_STEP_S)


def cause() -> Verdict | None:
    """Returns why the run ends, where another process has told it: in the store, or to the launcher."""
    with suppress(CoordinationError):
        if (text := kv_store.try_get("cause")) is not None:
            verdict = Verdict(**json.loads(text))
            return verdict if verdict.index != index() else None
    final = (exit_codes.USER_ERROR, exit_codes.STOP)
    return next((verdict for verdict in shutdown.of_others() if verdict.code in final), None)


_stopping = threading.Event()
_threads: list[threading.Thread] = []


def watch() -> None:
    """Begins to look for an end of another process; this one then ends too, within seconds, wherever it is."""
    shutdown.add_last_act(tell_others)
    _stopping.clear()
    for target in (_look_for_a_cause, _look_for_the_dead):
        _threads.append(threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True))
        _threads[-1].start()


def stop() -> None:
    """Ends the look: all have come to the end of the run."""
    _stopping.set()


def join() -> None:
    """Waits for the look to have ended: a thread that is inside JAX when Python ends takes the process with it.

    Its last question is answered when all others have asked or left, so process 0 comes here last.
    """
    while _threads:
        _threads.pop().join()


def _look_for_a_cause() -> None:
    while not _stopping.wait(LOOK_S):
        try:
            text = kv_store.try_get("cause")
        except CoordinationError as error:
            return _end(lost(None, f"process 0 is gone ({error})"))
        if text is not None and (found := cause()) is not None:
            return _end(lost(found, ""))


def _look_for_the_dead() -> None:
    while not _stopping.wait(LOOK_S):
        try:
            dead = set(range(count())) - kv_store.alive()
        except CoordinationError:
            return  # the other thread tells it
        if dead:
            gone = "are gone" if len(dead) > 1 else "is gone"
            return _end(lost(cause(), f"{name(dead)} {gone}: no heartbeat for {timeouts.HEARTBEAT_S} s"))


def _end(error: LostPeer) -> None:
    if not _stopping.wait(_MAIN_S):
        shutdown.end(error)
