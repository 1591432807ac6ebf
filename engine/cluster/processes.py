"""How the processes of a run join, and who this one is among them.

Owns: the call of `jax.distributed.initialize`. Does not own: from what a process knows who it is
(`cluster_detection.py`), what joined processes agree on and how they part (`peers.py`), how one ends (`shutdown.py`)
and takes the others with it (`peer_failure.py`), starting them (`launch/`).

Terms. *First process*: that of index 0; it alone writes the files of a run and the screen. *Coordinator*: where the
first process listens for the others; the data of the run goes other ways.
"""

import contextlib
import ipaddress
import os
import re
import time
from collections.abc import Iterator

from engine.cluster import identity, peer_failure, rendezvous
from engine.cluster.cluster_detection import Processes, address
from engine.cluster.identity import count, index, is_primary
from engine.cluster.rendezvous import CannotJoin, Refused
from engine.cluster.shutdown import bounded, first_line

__all__ = ["count", "index", "initialize", "is_primary"]
HEARTBEAT_S = 10  # one that is silent for so long is dead: twice what a paused virtual machine or a full disk takes
NAME_S = 30.0  # for process 0's own name to be known to it
JOIN_S = 300.0  # hosts of one job may start minutes apart
_JOIN_MORE_S = 30.0  # for JAX, once all are there
PART_S = 120.0  # at the end of the run, for the first process's last words on disk


def initialize(who: Processes, *, timeout_s: float = JOIN_S) -> None:
    """Joins the other processes; returns when all are there. Comes before anything asks JAX for devices.

    CPU devices of several processes talk by gloo. A single process joins nobody.

    Raises:
        CannotJoin: the coordinator is not reached, or cannot listen, or not all came in time.
        Refused: two have the same index, or they disagree on their number or on TLS (`rendezvous.py`);
            or TLS is asked for, and this jax has none.
        RuntimeError: from JAX, devices are in use already.
    """
    if who.detected:
        _detected()
    if who.count == 1:
        return
    import jax

    end = time.monotonic() + timeout_s
    place = _bind_address(who, min(timeout_s, NAME_S)) if who.index == 0 else who.coordinator
    host, port = address("the coordinator", place)
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
    with bounded(end + _JOIN_MORE_S - time.monotonic(), lambda: CannotJoin(late)), _without_warnings():
        try:
            jax.distributed.initialize(
                who.coordinator,
                who.count,
                who.index,
                local_device_ids=who.local_devices,
                coordinator_bind_address=place if who.index == 0 else None,  # by default: every network
                initialization_timeout=int(timeout_s + 2 * _JOIN_MORE_S),  # ours is shorter: then JAX kills the process
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=int(PART_S),
            )
        except jax.errors.JaxRuntimeError as error:
            raise CannotJoin(
                f"process {who.index} of {who.count}: cannot join the others at {who.coordinator} "
                f"({first_line(error)}). Start all processes again, with the same address."
            ) from error
    identity.set_joined(who)
    peer_failure.watch()


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
    """Keeps the C++ of JAX from telling a user that what was chosen above is experimental."""
    import jax

    told = "jax_logging_level"
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "1" or jax.config.values[told] != "NOTSET":  # JAX's own: 1, warnings
        yield
        return
    jax.config.update(told, "ERROR")
    try:
        yield
    finally:
        jax.config.update(told, "WARNING")
        jax.config.update(told, "NOTSET")


def _detected() -> None:
    """Joins as JAX finds out by itself, on hosts whose metadata only it reads."""
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=int(PART_S))
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise CannotJoin(
            f"JAX cannot join the other hosts by this host's metadata ({first_line(error)}). Say who this process is: "
            "--coordinator, --num-processes and --process-id."
        ) from error


def _bind_address(who: Processes, wait_s: float) -> str:
    """Where process 0 listens: at the interface of the coordinator's address alone.

    A host often has its own name at 127.0.1.1 (Debian's hosts file), where nobody else reaches it: then at the
    interface by which it reaches others. A pod is there some seconds before its name is.
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
                return who.coordinator  # the roll call tells it
        time.sleep(0.2)
    named = not re.fullmatch(r"localhost|[0-9a-fA-F.:%]+", host)
    if named and ipaddress.ip_address(str(found).partition("%")[0]).is_loopback:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address that no host has (RFC 5737)
            return f"{probe.getsockname()[0]}:{port}"
    return who.coordinator
