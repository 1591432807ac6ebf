"""What the processes of a run do together: agree, notice that one is gone, part.

Owns: values that the first process decides for all, telling a lost peer from an error of the user's, and the end that
all come to. Does not own: who one is (`processes.py`), an end that one comes to alone (`peer_failure.py`), the stop at
one step (`resilience/preemption.py`), or checkpoints, which Orbax writes together.

Terms. *Peer*: another process of the run. *Together*: what every process does at the same step. A process that ends
alone leaves its peers waiting for it, so it must end at once, without the parting that waits for them.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.cluster import kv_store, peer_failure
from engine.cluster.peer_failure import LostPeer, lost
from engine.cluster.processes import PART_S, count, index, is_primary
from engine.cluster.rendezvous import name
from engine.cluster.shutdown import bounded, first_line
from engine.config.errors import ConvoyError

_FRAME = 1000  # bytes that are sent at once
_LAST_S = 30.0  # process 0 waits so long for the others to leave
AGREE_S = 600.0  # the slowest start of a process beside the fastest: data is looked at, programs are loaded


def broadcast_from_primary(value: Any, what: str) -> Any:
    """Returns the first process's value in every process, which all wait for; starts the devices.

    Args:
        value: plain JSON; that of the others is ignored.
        what: is waited for, as "the run directory", for the sentence with which a wait without end is ended.
    """
    if count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    data = json.dumps(value).encode() if is_primary() else b""
    late = (
        f"process {index()} has waited {AGREE_S:g} s for the others at {what}. See what holds them up, "
        "then start the same command again."
    )
    with bounded(AGREE_S, lambda: LostPeer(late)):
        # The size of all, and some bytes of it: always of one shape, so that it is compiled once.
        frame = np.zeros(1 + _FRAME, np.int32)
        size, agreed = 0, b""
        while not agreed or len(agreed) < size:
            part = data[len(agreed) : len(agreed) + _FRAME]
            frame[0], frame[1 : 1 + len(part)] = len(data), np.frombuffer(part, np.uint8)
            received = np.asarray(multihost_utils.broadcast_one_to_all(frame))
            size = int(received[0])
            agreed += received[1 : 1 + min(_FRAME, size - len(agreed))].astype(np.uint8).tobytes()
    return json.loads(agreed)


class PrimaryError(ConvoyError):
    """An error that the first process met and all processes raise."""

    everywhere = True

    def __init__(self, kind: str, text: str, code: int):
        self._kind, self.exit_code = kind, code
        super().__init__(text)

    @property
    def kind(self) -> str:
        """What the first process calls it."""
        return self._kind


def run_on_primary(work: Callable[[], Any], what: str) -> Any:
    """Returns what `work` returns in the first process, which alone calls it, in every process; starts the devices.

    Args:
        work: returns plain JSON.
        what: is waited for, as for `broadcast_from_primary`.

    Raises:
        ConvoyError: raised by `work`, told in every process: none is left waiting.
    """
    value = error = None
    if is_primary():
        try:
            value = work()
        except ConvoyError as raised:
            if count() == 1:
                raise
            error = raised
    value, told = broadcast_from_primary([value, error and [error.kind, str(error), error.exit_code]], what)
    if error is not None:
        error.everywhere = True
        raise error
    if told is not None:
        raise PrimaryError(*told)
    return value


@contextmanager
def lost_peers_reported() -> Iterator[None]:
    """Turns what JAX raises when a peer is gone into a LostPeer, with the peer's own words where it left some."""
    try:
        yield
    except Exception as error:
        known = count() == 1 or isinstance(error, LostPeer)
        if known or (sign := sign_of_a_lost_peer(error)) is None:
            raise
        raise lost(peer_failure.cause(), f"another process of this run is gone ({sign})") from error


@contextmanager
def location_reported(step: Callable[[], int]) -> Iterator[None]:
    """Adds to an error of the user's code in which process, and after how many steps of the run, it was raised."""
    try:
        yield
    except ConvoyError:
        raise
    except Exception as error:
        place = f"in process {index()} of {count()}, " if count() > 1 else ""
        error.add_note(f"raised {place}after step {step()}")
        raise


def sign_of_a_lost_peer(error: BaseException | None) -> str | None:
    """Returns the words of JAX by which an error, or one that led to it, tells that a peer is gone; else None."""
    import jax

    while error is not None:
        words = first_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and _SIGNS.search(words):
            return words
        error = error.__cause__ or error.__context__
    return None


_SIGNS = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b|Gloo|NCCL|[Cc]onnection (reset|closed|refused)"
    r"|[Cc]oordination [Ss]ervice|[Bb]roken pipe"
)


def part() -> None:
    """The end of a run that all processes come to: waits for them, so that none takes the others down.

    Raises:
        LostPeer: not all came.
    """
    if count() == 1:
        return
    import jax

    missing = kv_store.barrier("part", PART_S)
    peer_failure.stop()
    if missing:
        raise LostPeer(
            f"{name(missing)} did not come to the end of the run within {PART_S:g} s. What is saved stays; "
            "the same command tells whether anything is left to do."
        )
    # Process 0 goes last: a process that finds JAX's coordinator gone before it has left is killed by JAX.
    with bounded(_LAST_S, lambda: LostPeer("the others have not left in time after the end of the run.")):
        while is_primary() and kv_store.alive() != {0}:
            time.sleep(0.05)
        peer_failure.join()
        jax.distributed.shutdown()
