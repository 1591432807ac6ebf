"""Propagates the failure of one process to its peers, so that none of them waits in vain.

A process that ends alone leaves its verdict in the key-value store. In each process two threads check for such a
verdict and for peers without heartbeat, whatever the main thread does. The verdict of the first process to end is the
cause; what ends later, ends because of it.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from engine.cluster import kv_store, shutdown, timeouts, verdict
from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import count, index, is_primary
from engine.cluster.kv_store import CoordinationError
from engine.cluster.rendezvous import name
from engine.cluster.verdict import Verdict
from engine.config.errors import ConvoyError, first_line


class LostPeer(ConvoyError):
    """Another process of the run is gone; `exit_code` is that of its verdict, where it left one."""

    exit_code = ExitStatus.RETRY
    from_outside = True


def lost(cause: Verdict | None, what: str) -> LostPeer:
    """Returns the error for the end of another process.

    Args:
        cause: its verdict, where it left one.
        what: what is known without a verdict: "process 3 is gone".
    """
    if cause is None:
        return LostPeer(f"{what}. Its own output says more; the same command goes on from the newest checkpoint.")
    error = LostPeer(f"process {cause.index} ended this run: {cause.line}")
    error.exit_code = cause.code
    return error


def report_to_peers(error: BaseException) -> None:
    """Leaves the verdict of this process to the others; process 0 waits until they have read it, or for 3 s."""
    if count() == 1:
        return
    with suppress(CoordinationError):
        kv_store.put_first("cause", json.dumps(asdict(Verdict.of(error, index()))))
        kv_store.put(f"ended/{index()}", "")
        if is_primary():
            end = time.monotonic() + timeouts.FAREWELL_S
            while time.monotonic() < end and len(kv_store.entries("ended")) < count():
                time.sleep(0.05)
            time.sleep(timeouts.FAREWELL_EXIT_S)


def cause() -> Verdict | None:
    """Returns why the run ends, where another process has said so: in the store, or to the launcher."""
    with suppress(CoordinationError):
        if (text := kv_store.try_get("cause")) is not None:
            found = Verdict(**json.loads(text))
            return found if found.index != index() else None
    final = (ExitStatus.USER_ERROR, ExitStatus.STOP)
    return next((found for found in verdict.of_others() if found.code in final), None)


_stopping = threading.Event()
_threads: list[threading.Thread] = []


def watch() -> None:
    """Starts the threads that end this process within seconds of another one, whatever the main thread does."""
    shutdown.add_last_act(report_to_peers)
    _stopping.clear()
    for target in (_watch_for_a_cause, _watch_heartbeats):
        _threads.append(threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True))
        _threads[-1].start()


def stop() -> None:
    """Tells the threads to stop: all processes have reached the end of the run."""
    _stopping.set()


def join() -> None:
    """Waits for the threads: one that is inside JAX when Python ends takes the process with it.

    Their last request returns when all other processes have made one or left, so process 0 calls this last.
    """
    while _threads:
        _threads.pop().join()


def _watch_for_a_cause() -> None:
    while not _stopping.wait(timeouts.PEER_POLL_S):
        try:
            text = kv_store.try_get("cause")
        except CoordinationError as error:
            return _end(lost(None, f"process 0 is gone ({error})"))
        if text is not None and (found := cause()) is not None:
            return _end(lost(found, ""))


def _watch_heartbeats() -> None:
    while not _stopping.wait(timeouts.PEER_POLL_S):
        try:
            dead = set(range(count())) - kv_store.alive()
        except CoordinationError:
            return  # the other thread reports it
        if dead:
            gone = "are gone" if len(dead) > 1 else "is gone"
            return _end(lost(cause(), f"{name(dead)} {gone}: no heartbeat for {timeouts.HEARTBEAT_S} s"))


def _end(error: LostPeer) -> None:
    if not _stopping.wait(timeouts.MAIN_THREAD_S):
        shutdown.end(error)


@contextmanager
def lost_peers_reported() -> Iterator[None]:
    """Turns what JAX raises when a peer is gone into a LostPeer, with the peer's own words where it left some."""
    try:
        yield
    except Exception as error:
        known = count() == 1 or isinstance(error, LostPeer)
        if known or (sign := sign_of_a_lost_peer(error)) is None:
            raise
        raise lost(cause(), f"another process of this run is gone ({sign})") from error


@contextmanager
def location_reported(step: Callable[[], int]) -> Iterator[None]:
    """Adds to an error of the user's code in which process, and after how many steps of the run, it was raised."""
    try:
        yield
    except ConvoyError:
        raise
    except Exception as error:
        where = f"in process {index()} of {count()}, " if count() > 1 else ""
        error.add_note(f"raised {where}after step {step()}")
        raise


_SIGNS = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b|Gloo|NCCL|[Cc]onnection (reset|closed|refused)"
    r"|[Cc]oordination [Ss]ervice|[Bb]roken pipe"
)


def sign_of_a_lost_peer(error: BaseException | None) -> str | None:
    """Returns JAX's words for a lost peer in an error or in one of its causes; None where there are none."""
    import jax

    while error is not None:
        words = first_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and _SIGNS.search(words):
            return words
        error = error.__cause__ or error.__context__
    return None
