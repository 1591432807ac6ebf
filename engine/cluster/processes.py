"""Connects to and disconnects from the other processes of a run.

`initialize` joins them (`joining.py`). `leave` disconnects when every process has reached the end of the run; any other
end is `shutdown.end`.
"""

import time

from engine.cluster import group, kv_store, peer_failure, timeouts
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.identity import count, is_primary, process_list
from engine.cluster.peer_failure import LostPeer
from engine.cluster.shutdown import deadline

__all__ = ["initialize", "leave"]


def initialize(process: ProcessInfo, *, timeout_s: float = timeouts.JOIN_S) -> None:
    """Joins the other processes; returns when all have joined. Call it before the first use of JAX's devices.

    CPU devices of several processes communicate through gloo. A single process returns immediately.

    Raises:
        CannotJoin: the coordinator cannot be reached or cannot listen, or processes are missing after the timeout.
        ConflictingSettings: two processes have the same index, or the processes have different counts or TLS settings
            (`rendezvous.py`); or TLS is set and this version of jax does not support it.
        UnreachableHost: CPU collectives between hosts would use an address that other hosts cannot reach.
        RuntimeError: from JAX, devices are already in use.
    """
    if process.count > 1 or process.detected_by_jax:
        from engine.cluster.joining import join

        join(process, timeout_s)


def leave() -> None:
    """Waits until every process has reached the end of the run, then disconnects; so no process fails because of it.

    Raises:
        LostPeer: some processes did not reach the end in time.
    """
    if count() == 1:
        return
    try:
        missing = group.barrier("the end of the run", timeouts.LEAVE_S)
    finally:
        peer_failure.stop()
    if missing:
        raise LostPeer(
            f"{process_list(missing)} did not reach the end of the run within {timeouts.LEAVE_S:g} s. Checkpoints are "
            "intact; the same command continues the run if steps remain."
        )
    # Process 0 disconnects last: JAX kills a process that loses the coordinator before it has disconnected.
    late = "the other processes have not disconnected in time after the end of the run."
    with deadline(timeouts.LEAVE_LAST_S, lambda: LostPeer(late)):
        for peers in peer_failure.heartbeat_groups(count()) if is_primary() else ():
            while kv_store.alive({0, *peers}) != {0}:
                time.sleep(0.05)
        peer_failure.disconnect()
