"""Joining and leaving the other processes of a run.

`initialize` wraps `jax.distributed.initialize` with a rendezvous before it, since JAX itself names nobody who is
missing. `leave` ends a run that every process has brought to its end; `shutdown.end` is for all other ends.
"""

import contextlib
import ipaddress
import os
import re
import time
from collections.abc import Iterator

from engine.cluster import group, identity, kv_store, peer_failure, rendezvous, timeouts
from engine.cluster.cluster_detection import Processes, address
from engine.cluster.identity import count, is_primary
from engine.cluster.peer_failure import LostPeer
from engine.cluster.rendezvous import CannotJoin, Refused, name
from engine.cluster.shutdown import bounded
from engine.config.errors import first_line

__all__ = ["initialize", "leave"]


def initialize(who: Processes, *, timeout_s: float = timeouts.JOIN_S) -> None:
    """Joins the other processes; returns when all have joined. Comes before anything asks JAX for devices.

    CPU devices of several processes communicate by gloo. A single process joins nobody.

    Raises:
        CannotJoin: the coordinator is not reached, or cannot listen, or not all came in time.
        Refused: two have the same index, or they disagree on their number or on TLS (`rendezvous.py`);
            or TLS is asked for, and this jax has none.
        RuntimeError: from JAX, devices are in use already.
    """
    if who.detected:
        _initialize_detected()
    if who.count == 1:
        return
    import jax

    end = time.monotonic() + timeout_s
    listen_at = _bind_address(who, min(timeout_s, timeouts.HOSTNAME_S)) if who.index == 0 else who.coordinator
    host, port = address("the coordinator", listen_at)
    rendezvous.hold(who.index, who.count, who.coordinator, host, port, timeout_s, secure=_is_secure())
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # By itself JAX aborts every process (134) as soon as one is dead. With this it leaves them to `peer_failure.py`,
    # which ends them with a sentence and 42. Barriers and collectives wait for the dead one as before.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `resilience/preemption.py`
    late = (
        f"process {who.index}: all {who.count} processes came to {who.coordinator}, but did not join there in time. "
        "See whether one of them has ended, and start all of them again."
    )
    with bounded(end + timeouts.JOIN_JAX_S - time.monotonic(), lambda: CannotJoin(late)), _without_warnings():
        try:
            jax.distributed.initialize(
                who.coordinator,
                who.count,
                who.index,
                local_device_ids=who.local_devices,
                coordinator_bind_address=listen_at if who.index == 0 else None,  # by default: every network
                # `bounded` is shorter: at this limit JAX kills the process.
                initialization_timeout=int(timeout_s + 2 * timeouts.JOIN_JAX_S),
                heartbeat_timeout_seconds=timeouts.HEARTBEAT_S,
                shutdown_timeout_seconds=int(timeouts.LEAVE_S),
            )
        except jax.errors.JaxRuntimeError as error:
            raise CannotJoin(
                f"process {who.index} of {who.count}: cannot join the others at {who.coordinator} "
                f"({first_line(error)}). Start all processes again, with the same address."
            ) from error
    identity.set_joined(who)
    peer_failure.watch()


def leave() -> None:
    """Waits until every process has come to the end of the run, then disconnects, so that none fails by it.

    Raises:
        LostPeer: not all came.
    """
    if count() == 1:
        return
    import jax

    try:
        missing = group.barrier("the end of the run", timeouts.LEAVE_S)
    finally:
        peer_failure.stop()
    if missing:
        raise LostPeer(
            f"{name(missing)} did not come to the end of the run within {timeouts.LEAVE_S:g} s. What is saved stays; "
            "the same command tells whether anything is left to do."
        )
    # Process 0 goes last: JAX kills a process that finds the coordinator gone before it has left.
    late = "the others have not left in time after the end of the run."
    with bounded(timeouts.LEAVE_LAST_S, lambda: LostPeer(late)):
        while is_primary() and kv_store.alive() != {0}:
            time.sleep(0.05)
        peer_failure.join()
        jax.distributed.shutdown()


def _is_secure() -> bool:
    """Whether JAX is to speak TLS, by its own setting, which its older releases lack."""
    import jax

    if hasattr(jax.config, "jax_mtls_cert_file"):
        return bool(jax.config.jax_mtls_cert_file)
    if os.environ.get("JAX_MTLS_CERT_FILE"):
        raise Refused(
            f"JAX_MTLS_CERT_FILE is set, but jax {jax.__version__} has no mutual TLS. Install jax 0.12 or newer, or "
            "unset the variable; the processes then talk in the clear."
        )
    return False


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences JAX's C++ warnings that the settings above are experimental."""
    import jax

    level = "jax_logging_level"
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "1" or jax.config.values[level] != "NOTSET":  # JAX's default is 1
        yield
        return
    jax.config.update(level, "ERROR")
    try:
        yield
    finally:
        jax.config.update(level, "WARNING")
        jax.config.update(level, "NOTSET")


def _initialize_detected() -> None:
    """Joins by JAX's own detection, on hosts whose metadata only JAX reads."""
    import jax

    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=timeouts.HEARTBEAT_S, shutdown_timeout_seconds=int(timeouts.LEAVE_S)
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise CannotJoin(
            f"JAX cannot join the other hosts by this host's metadata ({first_line(error)}). Say who this process is: "
            "--coordinator, --num-processes and --process-id."
        ) from error


def _bind_address(who: Processes, wait_s: float) -> str:
    """Returns where process 0 listens: at the interface of the coordinator's address alone.

    A host often has its own name at 127.0.1.1 (Debian's hosts file), where nobody else reaches it. Then process 0
    listens at the interface by which it reaches others. A pod's name resolves some seconds after the pod has started.
    """
    import socket

    host, port = address("the coordinator", who.coordinator)
    end = time.monotonic() + wait_s
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
            break
        except OSError:
            if time.monotonic() >= end:
                return who.coordinator  # the rendezvous reports it
        time.sleep(0.2)
    named = not re.fullmatch(r"localhost|[0-9a-fA-F.:%]+", host)
    if named and ipaddress.ip_address(str(found).partition("%")[0]).is_loopback:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address that no host has (RFC 5737)
            return f"{probe.getsockname()[0]}:{port}"
    return who.coordinator
