"""The connection of this process to a Ray cluster.

Ray is an extra: only this package imports it, inside of functions. Ray itself waits for minutes for a cluster that is
gone, in calls that no signal interrupts, so the address is tried first and every call has a time limit.
"""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from engine.base.errors import ConfigError, first_line
from engine.cluster.cluster_detection import address as parse_address
from engine.cluster.shutdown import RunThread

ADDRESS = "RAY_ADDRESS"
"""Ray's environment variable with the address of the cluster, HOST:PORT or ray://HOST:PORT."""

_PROBE_S = 5.0  # for an answer of the machine; a lost SYN packet is repeated after 1 and 3 s
_INIT_S = 60.0  # for a cluster that answers; it takes half a second on an idle machine


def connect(address: str | None = None) -> ModuleType:
    """Returns the module `ray`, connected to a running cluster.

    Ray's handler of SIGTERM is not installed, and its loggers print errors only.

    Args:
        address: HOST:PORT of the cluster; None: that of `RAY_ADDRESS`, else the cluster that `ray start` has started on
            this machine.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        from engine.base.extras import install_command

        raise ConfigError(f"Ray is not installed: {install_command('ray')}.") from error
    if ray.is_initialized():
        return ray
    wanted = address or os.environ.get(ADDRESS) or ""
    found = _started_here() if wanted in ("", "auto") else wanted
    where = f"at {found}" if found else "on this machine"
    _probe(found, where, "--address" if address else ADDRESS)
    try:
        call(lambda: _init(ray, found), _INIT_S)  # in a thread, Ray installs no handler of SIGTERM
    except TimeoutError:
        reason = f"it accepts connections, but did not answer as Ray within {_INIT_S:g} s"
        raise _no_cluster(where, reason) from None
    except Exception as error:
        raise _no_cluster(where, first_line(error)) from error
    _keep_sigterm()
    return ray


def _keep_sigterm() -> None:
    """Takes SIGTERM back from Ray's C++ code, which would print a stack and abort this process after three seconds."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _init(ray: ModuleType, address: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Ray, about its own defaults
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


def _started_here() -> str:
    """Returns the address that `ray start` has left on this machine; "" if there is none."""
    try:
        return (
            Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray/ray_current_cluster"
        ).read_text()
    except OSError:
        return ""


def _probe(address: str, where: str, name: str) -> None:
    """Raises ConfigError unless a server accepts connections at an address."""
    if not address:
        raise _no_cluster(where, "none was started")
    host, port = parse_address(name, address.removeprefix("ray://"))
    try:
        socket.create_connection((host, port), _PROBE_S).close()
    except OSError as error:
        raise _no_cluster(where, error.strerror or str(error)) from error


def _no_cluster(where: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers {where} ({reason}). Start one with `ray start --head`, and "
        f"`ray start --address=HOST:6379` on the other machines, or set {ADDRESS}."
    )


def call[T](work: Callable[[], T], limit_s: float) -> T:
    """Calls a function of Ray in a thread, since it may wait for minutes for a cluster that is gone.

    Raises:
        TimeoutError: it takes longer than the limit; the thread is left behind.
        Exception: any error of the function.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = RunThread(run, "ray")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"Ray did not answer within {limit_s:g} s")
    for error in errors:
        raise error
    return results[0]
