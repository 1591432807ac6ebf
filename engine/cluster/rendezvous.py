"""The rendezvous before processes join: reports missing processes, duplicate indices and conflicting settings.

It also reports hosts that others cannot reach. JAX reports none of these: it waits, and then kills the process. So
before JAX listens on the coordinator's port, each process sends a line of JSON to process 0 there and waits for one
line as the answer. Process 0 answers when all have called, on a conflict, or after the timeout. A caller that
disconnects before the answer counts as missing again.
"""

import contextlib
import json
import os
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypedDict, cast

from engine.base.errors import ConvoyError
from engine.cluster import host_address, origins, timeouts
from engine.cluster.exit_status import ExitStatus
from engine.cluster.identity import process_list

_FEW_FILES, _OTHER_FILES = 64, 512  # files that process 0 opens at least, and may open, beside its connections
_LINE = 4096  # maximum length in bytes
_SHOWN = 4  # hosts in one message


class _Caller(TypedDict):
    """A process, as it describes itself."""

    index: int
    count: int
    host: str
    pid: int
    secure: bool
    network: str  # the same for processes on one host
    own_address: str  # where CPU collectives expect this process; "" without such collectives
    route: str  # its address on the way to process 0


class CannotJoin(ConvoyError):
    """The processes of a run did not find each other."""

    exit_code = ExitStatus.RETRY
    from_outside = True


class ConflictingSettings(CannotJoin):
    """The processes have conflicting settings: the same command would fail again."""

    exit_code = ExitStatus.USER_ERROR
    from_outside = False


class EndedEarly(CannotJoin):
    """A process has ended with exit code 0 without joining: its command does something else, again after a restart."""

    exit_code = ExitStatus.USER_ERROR
    from_outside = False


class UnreachableHost(CannotJoin):
    """The processes are on several hosts, and a host names an address that the others cannot reach."""

    exit_code = ExitStatus.USER_ERROR
    from_outside = False


class Endpoint(NamedTuple):
    """Where process 0 listens and the other processes connect."""

    address: str
    """The coordinator, as the user gave it; for error texts."""
    host: str
    port: int


def wait_for_all(
    index: int,
    count: int,
    endpoint: Endpoint,
    timeout_s: float,
    *,
    secure: bool = False,
    cpu_collectives: bool = False,
) -> None:
    """Takes part in the rendezvous; returns when all processes have called.

    Args:
        index: index of this process.
        count: number of processes.
        endpoint: where process 0 listens and the others connect.
        timeout_s: seconds for all to call.
        secure: whether this process will use TLS once it has joined; the rendezvous itself does not.
        cpu_collectives: whether the devices of this process are CPUs.

    Raises:
        CannotJoin: process 0 cannot listen or be reached, or processes are missing after the timeout.
        EndedEarly: a missing process has ended with exit code 0, according to the launcher.
        ConflictingSettings: two processes have the same index, or the processes have different counts or TLS settings.
        UnreachableHost: the CPU collectives of a host would use an address that other hosts cannot reach.
    """
    end = time.monotonic() + timeout_s
    reached_from_elsewhere = cpu_collectives and not host_address.is_loopback(endpoint.host)
    me = _Caller(
        index=index,
        count=count,
        host=socket.gethostname(),
        pid=os.getpid(),
        secure=secure,
        network=host_address.network_id(),
        own_address=host_address.own_address() if reached_from_elsewhere else "",
        route="",
    )
    if index == 0:
        _allow_connections(count)
        with _listen(count, endpoint) as listener:
            _Rendezvous(me, listener, endpoint.address, timeout_s).run(end)
    else:
        _call(me, endpoint, end)


def _allow_connections(count: int) -> None:
    """Raises this process's limit of open files, which is often 1024: it holds a connection to each other process.

    Raises:
        ConflictingSettings: the hard limit is too low.
    """
    wanted = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + _FEW_FILES:
        raise ConflictingSettings(
            f"process 0 of {count} may open {hard} files, too few for a connection to each other process. Raise its "
            f"hard limit to {wanted} (ulimit -n, or LimitNOFILE of a service), then start all processes again."
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))


@contextlib.contextmanager
def port_reserved(count: int, endpoint: Endpoint) -> Iterator[Callable[[], None]]:
    """Keeps the system from giving the port of process 0 to another program between the rendezvous and JAX's server.

    Linux lets a server listen at the port of a socket that does not listen. Elsewhere, nothing is reserved.

    Args:
        count, endpoint: as for `wait_for_all`.

    Yields:
        A function that raises CannotJoin if another program listens at the port: JAX's process 0 would crash (139).

    Raises:
        CannotJoin: process 0 cannot use the port.
    """
    if not sys.platform.startswith("linux"):
        yield lambda: None
        return
    with _bind(count, endpoint):
        yield lambda: _bind(count, endpoint).close()


def _listen(count: int, endpoint: Endpoint) -> socket.socket:
    return _bind(count, endpoint, backlog=max(1024, count))  # the kernel's limit, often 4096, applies too


def _bind(count: int, endpoint: Endpoint, backlog: int = 0) -> socket.socket:
    """Returns a socket at the port, which listens if `backlog` is above 0. Raises CannotJoin."""
    try:
        family, _, _, _, resolved = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(resolved)
            if backlog:
                bound.listen(backlog)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise CannotJoin(
            f"process 0 of {count}: cannot listen at {endpoint.address} ({error.strerror or error}). Give an address "
            "of this machine and a free port, the same in every process; if another process 0 of this run is running, "
            "stop it."
        ) from error


class _Rendezvous:
    """The rendezvous on process 0."""

    def __init__(self, me: _Caller, listener: socket.socket, address: str, timeout_s: float):
        self._me, self._listener, self._address, self._timeout_s = me, listener, address, timeout_s
        self._present: dict[int, _Caller] = {0: me}
        me["route"] = listener.getsockname()[0]
        self._callers: dict[socket.socket, tuple[bytes, int | None]] = {}  # received bytes and, if known, the index
        self._selector = selectors.DefaultSelector()

    def run(self, end: float) -> None:
        """Waits for the others; answers all of them."""
        error: CannotJoin | None = None
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while error is None and len(self._present) < self._me["count"]:
                if (left := end - time.monotonic()) <= 0:
                    error = CannotJoin(self._missing_text())
                    break
                if (error := _ended_early(self._missing(), self._me)) is not None:
                    break
                for key, _ in self._selector.select(min(left, origins.POLL_S)):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        error = error or self._read(key.fileobj)
            error = error or self._unreachable()
            self._answer_all(error)
        finally:
            for caller in self._callers:
                caller.close()
            self._selector.close()
        if error is not None:
            raise error

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        caller.setblocking(False)
        self._callers[caller] = (b"", None)
        self._selector.register(caller, selectors.EVENT_READ)

    def _read(self, caller: socket.socket) -> CannotJoin | None:
        """Reads what a caller sent; returns an error if its settings conflict with those of another process."""
        data, index = self._callers[caller]
        try:
            more = caller.recv(_LINE)
        except OSError:
            more = b""
        data += more
        if not more or len(data) > _LINE:
            self._selector.unregister(caller)
            del self._callers[caller]
            caller.close()
            if index is not None:
                del self._present[index]
            return None
        who = cast(_Caller | None, _parse(data) if data.endswith(b"\n") else None)
        if who is None or index is not None:
            self._callers[caller] = (data, index)
            return None
        conflict = self._conflict(who)
        if conflict is None:
            self._present[who["index"]] = who
            self._callers[caller] = (data, who["index"])
        return conflict

    def _conflict(self, who: _Caller) -> ConflictingSettings | None:
        if who["count"] != self._me["count"]:
            return ConflictingSettings(
                f"{_text(who)} expects {who['count']} processes, {_text(self._me)} expects {self._me['count']}. "
                "Give all of them the same number."
            )
        if bool(who.get("secure")) != self._me["secure"]:
            without, with_ = (who, self._me) if self._me["secure"] else (self._me, who)
            return ConflictingSettings(
                f"{_text(with_)} has JAX_MTLS_CERT_FILE and uses TLS, {_text(without)} does not. Give all "
                "of them a certificate, or none."
            )
        if (other := self._present.get(who["index"])) is not None:
            return ConflictingSettings(
                f"two processes have the index {who['index']}: {_text(other)} and {_text(who)}. Each process needs its "
                f"own index, 0 to {self._me['count'] - 1}; check what started the second process."
            )
        return None

    def _unreachable(self) -> UnreachableHost | None:
        """Returns an error if the processes are on several hosts, and one of them can be reached only from its host."""
        if len({who.get("network") for who in self._present.values()}) == 1:
            return None
        hosts = {
            who.get("network"): who
            for _, who in sorted(self._present.items(), reverse=True)
            if host_address.is_loopback(who.get("own_address", ""))
        }
        if not hosts:
            return None
        found = sorted(hosts.values(), key=lambda who: who["index"])
        more = f"; ... ({len(found)} hosts)" if len(found) > _SHOWN else ""
        lines = "; ".join(f"`{who['route']} {who['host']}` on {who['host']}" for who in found[:_SHOWN])
        return UnreachableHost(
            f"{_text(found[0])} resolves the name of its host to {found[0]['own_address']}, which other hosts cannot "
            "reach. JAX's collectives between CPUs connect to this address. Map the name to an address of the network "
            f"in /etc/hosts, in place of the existing line: {lines}{more}. Then start all of them again."
        )

    def _missing(self) -> list[int]:
        return sorted(set(range(self._me["count"])) - set(self._present))

    def _missing_text(self) -> str:
        missing, count = self._missing(), self._me["count"]
        they = "they" if len(missing) > 1 else "it"
        return (
            f"{process_list(missing)} of {count} did not reach {self._address} within {self._timeout_s:g} s; all "
            f"others did.{origins.described(missing, 0, count)} Check why {they} did not start, and start all of them "
            "again."
        )

    def _answer_all(self, error: CannotJoin | None) -> None:
        """Sends the answer to all. Each caller closes its side first, so that the port is free immediately.

        All callers together have `timeouts.RENDEZVOUS_CLOSE_S` seconds to do so, so that stopped callers do not add up.
        """
        answer = json.dumps({"error": str(error or ""), "kind": type(error).__name__}) + "\n"
        for caller in self._callers:
            with contextlib.suppress(OSError):
                caller.send(answer.encode())  # not blocking: a line fits into the empty buffer of the connection
        end = time.monotonic() + timeouts.RENDEZVOUS_CLOSE_S
        for caller in self._callers:
            caller.settimeout(max(0.001, end - time.monotonic()))
            with contextlib.suppress(OSError):
                while caller.recv(_LINE):
                    pass


def _ended_early(missing: Iterable[int], me: _Caller) -> EndedEarly | None:
    """Returns an error if missing processes have ended with exit code 0, so that the others would wait in vain."""
    if not (ended := origins.ended(missing)):
        return None
    origins.record_missed(ended)
    return EndedEarly(
        f"{process_list(ended)} of {me['count']} ended with exit code 0 before joining the others."
        f"{origins.described(ended, me['index'], me['count'])} Start the same command in each process, and check what "
        "ends it early."
    )


def _call(me: _Caller, endpoint: Endpoint, end: float) -> None:
    """The rendezvous on the other processes: sends the description of this process and waits for the answer."""
    myself = f"process {me['index']} of {me['count']}"
    # Process 0 may start minutes later: many processes try more rarely, so that they do not flood its host.
    retry_s = timeouts.RENDEZVOUS_RETRY_S * max(1.0, me["count"] / timeouts.POLLING_PROCESSES)
    with _connect(me, endpoint, end, retry_s) as caller:
        caller.settimeout(max(0.0, end - time.monotonic()) + timeouts.RENDEZVOUS_ANSWER_S)
        me["route"] = caller.getsockname()[0]
        try:
            caller.sendall((json.dumps(me) + "\n").encode())
            data = b""
            while not data.endswith(b"\n") and (more := caller.recv(_LINE)):
                data += more
        except TimeoutError as error:
            raise CannotJoin(
                f"{myself}: {endpoint.address} does not answer in time. Check process 0, and start all of them again."
            ) from error
        except OSError:
            data = b""
    found = _parse(data)
    if found is None:
        raise CannotJoin(
            f"{myself}: at {endpoint.address} the processes have already joined without this process, or another "
            f"program listens there, or process 0 has ended. Check whether another process {me['index']} is "
            "running, and start all processes again."
        )
    if found["error"]:
        kinds = {kind.__name__: kind for kind in (ConflictingSettings, EndedEarly, UnreachableHost)}
        raise kinds.get(found["kind"], CannotJoin)(found["error"])


def _connect(me: _Caller, endpoint: Endpoint, end: float, retry_s: float) -> socket.socket:
    poll_at = 0.0
    while True:
        try:
            return socket.create_connection((endpoint.host, endpoint.port), timeout=max(0.1, end - time.monotonic()))
        except OSError as error:
            if (now := time.monotonic()) >= end:
                raise CannotJoin(
                    f"process {me['index']} of {me['count']}: the coordinator {endpoint.address} does not answer "
                    f"({error.strerror or error}). Process 0 listens there: check that it runs, that the address is "
                    "right and that the network allows the connection, then start all processes again."
                    f"{origins.described([0], me['index'], me['count'])}"
                ) from error
        if now >= poll_at:
            poll_at = now + origins.POLL_S
            if (early := _ended_early([0], me)) is not None:
                raise early
        time.sleep(retry_s)


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
        return found if isinstance(found, dict) and ("index" in found or "error" in found) else None
    except ValueError:
        return None


def _text(who: _Caller) -> str:
    return f"process {who['index']} on {who['host']} (pid {who['pid']})"
