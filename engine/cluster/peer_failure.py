"""Propagates the failure of one process to its peers, so that none of them hangs.

A process that fails alone puts its verdict into the key-value store. In each process a thread waits for such a verdict
in one request. Other threads poll for peers without heartbeat and for the loss of process 0, whatever the main thread
does. The first verdict is the cause of the failure; processes that end later end because of it.
"""

import atexit
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from engine.base.errors import ConvoyError, EngineEnd, first_line
from engine.cluster import kv_store, shutdown, timeouts, verdict
from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import count, index, is_primary, process_list
from engine.cluster.kv_store import CoordinationError
from engine.cluster.verdict import Verdict

_FIRST_VERDICT = "verdict"  # key in the store
GROUP = 64
"""Most processes that watch each other's heartbeats."""


class LostPeer(ConvoyError):
    """Another process of the run has ended; `exit_code` is that of its verdict, if it left a verdict."""

    exit_code = ExitStatus.RETRY
    from_outside = True


def lost_peer(found: Verdict | None, what: str) -> LostPeer:
    """Returns the error for the end of another process.

    Args:
        found: its verdict, if it left a verdict.
        what: the text without a verdict: "process 3 is gone".
    """
    if found is None:
        return LostPeer(f"{what}. Its own output has the reason; the same command resumes from the newest checkpoint.")
    error = LostPeer(f"process {found.index} ended this run: {found.line}")
    error.exit_code = found.code
    return error


def report_to_peers(error: BaseException) -> None:
    """Publishes the verdict of this process; process 0 waits until its peers have read it, at most 3 s."""
    if count() == 1 or _coordinator_lost.is_set():
        return
    with suppress(CoordinationError):
        kv_store.put_first(_FIRST_VERDICT, json.dumps(asdict(Verdict.of(error, index()))))
        ended = kv_store.increment("ended")
        if is_primary():
            end = time.monotonic() + timeouts.PEERS_READ_S
            while time.monotonic() < end and ended < count():
                time.sleep(0.05)
                ended = int(kv_store.try_get("ended") or 0)
            time.sleep(timeouts.PEERS_EXIT_S)


def first_verdict() -> Verdict | None:
    """Returns the verdict of the peer that ended the run, from the store or the launcher; None if there is none."""
    with suppress(CoordinationError):
        if (text := kv_store.try_get(_FIRST_VERDICT)) is not None:
            return _verdict_of_peer(text)
    final = (ExitStatus.USER_ERROR, ExitStatus.STOP)
    return next((found for found in verdict.read_peers() if found.code in final), None)


def _verdict_of_peer(text: str) -> Verdict | None:
    found = Verdict(**json.loads(text))
    return found if found.index != index() else None


_stopping = threading.Event()
_coordinator_lost = threading.Event()  # a request to process 0 would hang
_peer_lost = threading.Event()  # the main thread has an error about a lost peer, which may be process 0
_threads: list[threading.Thread] = []
_probe_now = threading.Event()  # process 0 may be lost, or the threads stop
_request = 0  # number of the probe of process 0 that waits for its answer, from 1; 0 if none waits


def watch() -> None:
    """Starts the threads that end this process within seconds after a peer failed, even if the main thread hangs."""
    from engine.cluster import stop_signal

    shutdown.add_exit_callback(report_to_peers)
    atexit.register(disconnect)  # also a program that does not call `processes.leave` must not crash
    _stopping.clear()
    _probe_now.clear()
    coordinator = () if is_primary() else (_probe_coordinator, _watch_coordinator)
    for target in (_watch_verdict, _watch_heartbeats, *coordinator):
        _threads.append(shutdown.RunThread(target, target.__name__.strip("_")))
        _threads[-1].start()
    if (thread := stop_signal.watch(_end_after_stop, _stopping)) is not None:
        _threads.append(thread)


def stop() -> None:
    """Stops the threads: the run ends, and failures of peers no longer matter."""
    _stopping.set()
    _probe_now.set()


def disconnect() -> None:
    """Disconnects this process from the others, which cancels the requests of its threads, and waits for the threads.

    A thread that is inside JAX when Python exits would crash the process.
    """
    import jax

    stop()
    jax.distributed.shutdown()
    while _threads:
        _threads.pop().join()


def _watch_verdict() -> None:
    text = None
    try:
        while text is None and not _stopping.is_set():
            text = kv_store.get(_FIRST_VERDICT, timeouts.VERDICT_READ_S)
    except CoordinationError:
        return _probe_now.set()  # `_probe_coordinator` reports it
    if text is not None and (found := _verdict_of_peer(text)) is not None:
        _end(lost_peer(found, ""))


def heartbeat_s(processes: int) -> int:
    """Returns JAX's timeout of a heartbeat in a run of `processes`. It grows with the time between two probes.

    JAX aborts a process 1 s plus half of this timeout after a heartbeat without an answer. By then, a probe must have
    had no answer for `timeouts.COORDINATOR_S`.
    """
    return timeouts.HEARTBEAT_S + math.ceil(2 * (_probe_period(processes) - timeouts.PEER_POLL_S))


def _probe_period(processes: int) -> float:
    return kv_store.poll_period(timeouts.PEER_POLL_S, timeouts.LONGEST_PROBE_S, processes)


def _probe_coordinator() -> None:
    """Sends requests to process 0, so that `_watch_coordinator` notices that there is no answer."""
    global _request
    requests, period = 0, _probe_period(count())
    while True:
        _probe_now.wait(period)
        _probe_now.clear()
        if _stopping.is_set():
            return
        _request = requests = requests + 1
        try:
            kv_store.try_get("probe")
        except CoordinationError as error:
            return _end(lost_peer(None, f"process 0 is gone ({error})"))
        finally:
            _request = 0


def _end_after_stop(seconds: float) -> None:
    """Ends this process if it was stopped for so long that it missed a heartbeat.

    Process 0 may count it as lost already, and JAX aborts such a process a second after it continues.
    """
    if seconds > heartbeat_s(count()) / 2:
        _coordinator_lost.set()
        text = f"process {index()} was stopped for {seconds:.0f} s, and the other processes do not wait for it so long."
        shutdown.end(LostPeer(f"{text} The same command resumes from the newest checkpoint."))


def _watch_coordinator() -> None:
    """Ends this process if process 0 does not answer a probe, before JAX aborts this process."""
    request, waited, last = 0, 0.0, time.monotonic()
    while not _stopping.wait(timeouts.COORDINATOR_POLL_S):
        # While this process was stopped or had no CPU time, it did not wait for process 0.
        now = time.monotonic()
        passed, last = min(now - last, 2 * timeouts.COORDINATOR_POLL_S), now
        waited = waited + passed if request == _request else 0.0
        request = _request
        if request and waited > (timeouts.COORDINATOR_SUSPECT_S if _peer_lost.is_set() else timeouts.COORDINATOR_S):
            _coordinator_lost.set()
            text = f"process 0, which coordinates the processes, has not answered for {waited:.0f} s"
            shutdown.end(lost_peer(None, f"{text}: it has ended, or the network to its host is interrupted"))


def heartbeat_groups(processes: int) -> list[range]:
    """Returns the groups of processes that watch each other's heartbeats; process i is in group i modulo their number.

    A group has at most `GROUP` processes, since each check sends the list of the group to each of its processes.
    Neighbours, which may share a host, are in different groups. If all processes of a group end at once and no other
    process does, only the watchdog notices it.
    """
    groups = -(-processes // GROUP)
    return [range(first, processes, groups) for first in range(groups)]


def _watch_heartbeats() -> None:
    groups = heartbeat_groups(count())
    peers = groups[index() % len(groups)]
    while not _stopping.wait(kv_store.poll_period(timeouts.PEER_POLL_S, timeouts.LONGEST_HEARTBEAT_POLL_S)):
        try:
            dead = set(peers) - kv_store.alive(peers)
        except CoordinationError:
            return  # `_probe_coordinator` reports it
        if dead:
            gone = "are gone" if len(dead) > 1 else "is gone"
            text = f"{process_list(dead)} {gone}: no heartbeat for {heartbeat_s(count())} s"
            return _end(lost_peer(first_verdict(), text))


def _end(error: LostPeer) -> None:
    if not _stopping.wait(timeouts.MAIN_THREAD_S):
        shutdown.end(error)


@contextmanager
def lost_peers_reported() -> Iterator[None]:
    """Raises JAX's errors about a lost peer as LostPeer, with the verdict of the peer if it left one."""
    try:
        yield
    except Exception as error:
        if count() == 1 or isinstance(error, LostPeer) or (text := lost_peer_text(error)) is None:
            raise
        _peer_lost.set()
        _probe_now.set()
        raise lost_peer(first_verdict(), f"another process of this run is gone ({text})") from error


@contextmanager
def location_reported(step: Callable[[], int]) -> Iterator[None]:
    """Adds a note to errors of the user's code: the process, and the number of completed steps."""
    try:
        yield
    except EngineEnd:
        raise
    except (Exception, SystemExit) as error:
        where = f"in process {index()} of {count()}, " if count() > 1 else ""
        error.add_note(f"Raised {where}after step {step()}.")
        raise


_LOST_PEER = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b|Gloo|NCCL|[Cc]onnection (reset|closed|refused)"
    r"|[Cc]oordination [Ss]ervice|[Bb]roken pipe"
)


def lost_peer_text(error: BaseException | None) -> str | None:
    """Returns JAX's message about a lost peer, from an error or its chain of causes; None if there is none."""
    import jax

    while error is not None:
        text = first_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST_PEER.search(text):
            return text
        error = error.__cause__ or error.__context__
    return None
