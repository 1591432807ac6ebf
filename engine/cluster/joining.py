"""Joins the other processes of a run: a rendezvous, then `jax.distributed.initialize`.

The rendezvous comes first since JAX does not report which processes are missing. Only a run of several processes
imports this module.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator

from engine.base.errors import first_line
from engine.cluster import coordinator_connection, host_address, identity, peer_failure, rendezvous, timeouts
from engine.cluster.cluster_detection import ProcessInfo, address
from engine.cluster.rendezvous import CannotJoin, ConflictingSettings
from engine.cluster.shutdown import deadline


def join(process: ProcessInfo, timeout_s: float) -> None:
    """Joins the other processes, as `processes.initialize` describes it."""
    if process.detected_by_jax:
        _initialize_by_jax()
    if process.count == 1:
        return
    cpu = host_address.uses_only_cpu()  # imports JAX, which may take long from a cold disk: not part of the timeout
    end = time.monotonic() + timeout_s
    index, coordinator = process.index, process.coordinator
    listen_at = _bind_address(process, min(timeout_s, timeouts.HOSTNAME_S)) if index == 0 else coordinator
    host, port = address("the coordinator", listen_at)
    endpoint = rendezvous.Endpoint(coordinator, host, port)
    reserved = rendezvous.port_reserved(process.count, endpoint)
    with reserved if index == 0 else contextlib.nullcontext(lambda: None) as check_port:
        rendezvous.wait_for_all(index, process.count, endpoint, timeout_s, secure=_is_secure(), cpu_collectives=cpu)
        check_port()
        _connect(process, listen_at, timeout_s, end)
    if index != 0:
        coordinator_connection.hide_close(port)
    identity.set_joined(process)
    peer_failure.watch()


def _connect(process: ProcessInfo, listen_at: str, timeout_s: float, end: float) -> None:
    """Connects this process to JAX's coordination service, which runs in process 0 and listens at `listen_at`.

    Args:
        process: this process.
        listen_at: HOST:PORT.
        timeout_s: as for `join`.
        end: monotonic time at which it ends.

    Raises:
        CannotJoin: the processes did not connect in time.
    """
    import jax

    index, coordinator = process.index, process.coordinator
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # By default JAX aborts every process (134) as soon as one is dead. With this setting it leaves that to
    # `peer_failure.py`, which exits with a sentence and 42. Barriers and collectives still wait for the dead process.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, as `loop/preemption.py`
    late = (
        f"process {index}: all {process.count} processes reached {coordinator}, but did not join in time. "
        "Check whether one of them has ended, and start all of them again."
    )
    join_s = timeouts.JOIN_JAX_S + timeouts.JOIN_EACH_S * process.count
    with deadline(end + join_s - time.monotonic(), lambda: CannotJoin(late)), _without_warnings():
        try:
            jax.distributed.initialize(
                coordinator,
                process.count,
                index,
                local_device_ids=process.local_devices,
                coordinator_bind_address=listen_at if index == 0 else None,  # JAX's default: every network
                # Longer than `deadline`, since JAX kills the process at this timeout.
                initialization_timeout=int(timeout_s + 2 * join_s),
                heartbeat_timeout_seconds=peer_failure.heartbeat_s(process.count),
                shutdown_timeout_seconds=int(timeouts.LEAVE_S),
            )
        except jax.errors.JaxRuntimeError as error:
            raise CannotJoin(
                f"process {index} of {process.count}: cannot join the others at {coordinator} "
                f"({first_line(error)}). Start all processes again, with the same address."
            ) from error


def _is_secure() -> bool:
    """Whether JAX is configured to use TLS, a setting that older versions lack."""
    import jax

    if hasattr(jax.config, "jax_mtls_cert_file"):
        return bool(jax.config.jax_mtls_cert_file)
    if os.environ.get("JAX_MTLS_CERT_FILE"):
        raise ConflictingSettings(
            f"JAX_MTLS_CERT_FILE is set, but jax {jax.__version__} has no mutual TLS. Install jax 0.12 or newer, or "
            "unset the variable; the processes then communicate without encryption."
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


def _initialize_by_jax() -> None:
    """Joins with JAX's own detection, on hosts whose metadata only JAX reads."""
    import jax

    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=timeouts.HEARTBEAT_S, shutdown_timeout_seconds=int(timeouts.LEAVE_S)
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise CannotJoin(
            f"JAX cannot join the other hosts from this host's metadata ({first_line(error)}). Pass --coordinator, "
            "--num-processes and --process-id."
        ) from error


def _bind_address(process: ProcessInfo, wait_s: float) -> str:
    """Returns the address at which process 0 listens: only the interface of the coordinator's address.

    A host often resolves its own name to 127.0.1.1 (Debian's hosts file), which other hosts cannot reach. Process 0
    then listens at its outgoing interface. A pod's name resolves only some seconds after the pod has started.
    """
    import socket

    host, port = address("the coordinator", process.coordinator)
    end = time.monotonic() + wait_s
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
            break
        except OSError:
            if time.monotonic() >= end:
                return process.coordinator  # the rendezvous reports the error
        time.sleep(0.2)
    named = not re.fullmatch(r"localhost|[0-9a-fA-F.:%]+", host)
    if named and host_address.is_loopback(str(found)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends no packet; an address that no host has (RFC 5737)
            return f"{probe.getsockname()[0]}:{port}"
    return process.coordinator
