"""Who this process is among the processes of a run, and how they join.

Owns: the three settings that say who one is, and the call of `jax.distributed.initialize`. Does not own: what joined
processes agree on and how they part (`peers.py`), how one ends (`ending.py`) and takes the others with it
(`departure.py`), starting them (`launch/`).

Terms. *First process*: that of index 0; it alone writes the files of a run and the screen. *Coordinator*: where the
first process listens for the others; the data of the run goes other ways.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.cluster import exit_codes
from engine.cluster.ending import bounded, first_line
from engine.config.errors import ConfigError, ConvoyError

HEARTBEAT_S = 10  # one that is silent for so long is dead: twice what a paused virtual machine or a full disk takes
JOIN_S = 300.0  # hosts of one job may start minutes apart
PART_S = 120.0  # at the end of the run, for the first process's last words on disk

FLAGS = {"coordinator": "--coordinator", "count": "--num-processes", "index": "--process-id"}
VARIABLES = {
    "coordinator": "CONVOY_COORDINATOR",
    "count": "CONVOY_NUM_PROCESSES",
    "index": "CONVOY_PROCESS_ID",
}
_WANTED = {"coordinator": "HOST:PORT of process 0", "count": "their number", "index": "0 to their number - 1"}


class CannotJoin(ConvoyError):
    """The processes of a run did not find each other."""

    exit_code = exit_codes.RETRY
    from_outside = True


@dataclass(frozen=True)
class Processes:
    """One process among `count`; by default it is the only one."""

    index: int = 0
    count: int = 1
    coordinator: str = ""  # HOST:PORT at which the first process listens


_joined: Processes | None = None


def resolve(flags: Mapping[str, str | None] | None = None, environment: Mapping[str, str] = os.environ) -> Processes:
    """Returns who this process is.

    Args:
        flags: "coordinator", "count" and "index" as they stand on the command line; each wins over its variable.
        environment: with the variables; empty ones count as unset.

    Raises:
        ConfigError: some of the three are missing, or one is not what it must be.
    """
    found: dict[str, tuple[str, str]] = {}  # name -> (where it was written, value)
    for name, variable in VARIABLES.items():
        if (value := (flags or {}).get(name)) is not None:
            found[name] = (FLAGS[name], value)
        elif environment.get(variable):
            found[name] = (variable, environment[variable])
    if not found:
        return Processes()
    if missing := [name for name in VARIABLES if name not in found]:
        raise ConfigError(
            f"several processes: found {', '.join(f'{where}={value}' for where, value in found.values())}, but not "
            f"{' and '.join(f'{FLAGS[name]} or {VARIABLES[name]} ({_WANTED[name]})' for name in missing)}. "
            "Give all three, or none for a single process."
        )
    count = _integer(*found["count"], least=1, allowed="a number of processes from 1")
    allowed = f"0 to {count - 1}, as there are {found['count'][0]}={count} processes"
    index = _integer(*found["index"], least=0, allowed=allowed)
    if index >= count:
        raise ConfigError(f"{found['index'][0]} = {index}: allowed is {allowed}. Each process has its own.")
    _address(*found["coordinator"])
    return Processes(index, count, found["coordinator"][1])


def _integer(where: str, text: str, *, least: int, allowed: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise ConfigError(f"{where} = {text!r}: allowed is {allowed}. Give a whole number.")
    return int(text)


def _address(where: str, text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPv6]:PORT`, as (host, port)."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^:\s\[\]/]+)):(\d+)", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError(
            f"{where} = {text!r}: allowed is HOST:PORT with a port from 1 to 65535, as 10.0.0.1:8476. "
            "It is the address of process 0, the same in every process."
        )
    return match[1] or match[2], int(match[3])


def initialize(who: Processes, *, timeout_s: float = JOIN_S) -> None:
    """Joins the other processes; returns when all are there. Comes before anything asks JAX for devices.

    CPU devices of several processes talk by gloo. A single process joins nobody.

    Raises:
        CannotJoin: the coordinator is not reached, or cannot listen. A process that waits in vain for others tells so
            and ends, since JAX would end it without a word.
        RuntimeError: from JAX, devices are in use already.
    """
    global _joined
    if who.count == 1:
        return
    import jax

    end = time.monotonic() + timeout_s
    if who.index == 0:
        _try_to_listen(who)
    else:
        _try_to_connect(who, end)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # By itself JAX aborts every process (134) as soon as one is dead. With this it leaves them to `departure.py`, which
    # ends them with a sentence and 42. Barriers and collectives wait for the dead one as before.
    jax.config.update("jax_enable_recoverability", True)
    late = (
        f"process {who.index}: not all {who.count} processes came to {who.coordinator} within {timeout_s:g} s. "
        "See why the missing ones did not start, and start all of them again."
    )
    with bounded(end - time.monotonic(), lambda: CannotJoin(late)), _without_warnings():
        try:
            jax.distributed.initialize(
                who.coordinator,
                who.count,
                who.index,
                coordinator_bind_address=who.coordinator if who.index == 0 else None,  # by default: every network
                initialization_timeout=int(timeout_s) + 60,  # ours comes first: at its end JAX kills the process
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=int(PART_S),
            )
        except jax.errors.JaxRuntimeError as error:
            raise CannotJoin(
                f"process {who.index} of {who.count}: cannot join the others at {who.coordinator} "
                f"({first_line(error)}). Start all processes again, with the same address."
            ) from error
    _joined = who
    from engine.cluster import departure  # it needs to know who one is

    departure.watch()


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


def _try_to_connect(who: Processes, end: float) -> None:
    """Returns once the coordinator answers; what JAX does without one is to end the process by SIGABRT."""
    import socket

    address = _address("the coordinator", who.coordinator)
    while True:
        try:
            socket.create_connection(address, timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                raise CannotJoin(
                    f"process {who.index} of {who.count}: the coordinator {who.coordinator} does not answer "
                    f"({error.strerror or error}). It is process 0 that listens there: see that it runs, that the "
                    "address is right and that the network lets it through, then start all processes again."
                ) from error
        time.sleep(0.1)


def _try_to_listen(who: Processes) -> None:
    """Raises CannotJoin where this process may not listen; JAX would end it by SIGSEGV."""
    import socket

    host, port = _address("the coordinator", who.coordinator)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise CannotJoin(
            f"process 0 of {who.count}: cannot listen at {who.coordinator} ({error.strerror or error}). "
            "Give an address of this machine and a free port, the same in every process."
        ) from error


def index() -> int:
    """The number of this process. Once several have joined, it is known without starting a device."""
    return _whole_job().index


def count() -> int:
    """How many processes the run has."""
    return _whole_job().count


def is_first() -> bool:
    """Whether this process writes the run's files and the screen."""
    return index() == 0


def _whole_job() -> Processes:
    if _joined is not None:
        return _joined
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():  # by the author of a notebook, say
            return Processes(jax.process_index(), jax.process_count())
    return Processes()
