"""The rendezvous before processes join: finds who is missing, who comes twice, and who disagrees.

JAX itself reports none of this: it waits, and then kills the process. So before JAX listens on the coordinator's port,
each process sends a line of JSON to process 0 there and waits for one line as the answer. Process 0 answers when all
have called, when one must be refused, or when the time is up. A caller that disconnects before the answer is missing
again.
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any, TypedDict, cast

from engine.cluster import timeouts
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError

_LINE = 4096  # bytes at most


class _Caller(TypedDict):
    """What a process says about itself."""

    index: int
    count: int
    host: str
    pid: int
    secure: bool


class CannotJoin(ConvoyError):
    """The processes of a run did not find each other."""

    exit_code = ExitStatus.RETRY
    from_outside = True


class Refused(CannotJoin):
    """The processes have contradicting settings: the same command would fail again."""

    exit_code = ExitStatus.USER_ERROR
    from_outside = False


def hold(index: int, count: int, address: str, host: str, port: int, timeout_s: float, *, secure: bool = False) -> None:
    """Takes part in the rendezvous; returns when all processes have called.

    Args:
        index: of this process.
        count: of all.
        address: of the coordinator, as it was given.
        host, port: where process 0 listens, and where the others find it.
        timeout_s: seconds for all to call.
        secure: whether this process will use TLS once it has joined; the rendezvous itself does not.

    Raises:
        CannotJoin: process 0 cannot listen or is not reached, or not all came in time.
        Refused: two processes have the same index, or they disagree on their number or on TLS.
    """
    end = time.monotonic() + timeout_s
    me = _Caller(index=index, count=count, host=socket.gethostname(), pid=os.getpid(), secure=secure)
    if index == 0:
        with _listen(count, address, host, port) as listener:
            _Rendezvous(me, listener, address, timeout_s).run(end)
    else:
        _call(me, address, host, port, end)


def _listen(count: int, address: str, host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise CannotJoin(
            f"process 0 of {count}: cannot listen at {address} ({error.strerror or error}). Give an address of this "
            "machine and a free port, the same in every process; if another process 0 of this run is there, end it."
        ) from error


class _Rendezvous:
    """The part of process 0."""

    def __init__(self, me: _Caller, listener: socket.socket, address: str, timeout_s: float):
        self._me, self._listener, self._address, self._timeout_s = me, listener, address, timeout_s
        self._present: dict[int, _Caller] = {0: me}
        self._callers: dict[socket.socket, tuple[bytes, int | None]] = {}  # what each has sent so far, and its index
        self._selector = selectors.DefaultSelector()

    def run(self, end: float) -> None:
        """Waits for the others; answers all of them."""
        error: CannotJoin | None = None
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while error is None and len(self._present) < self._me["count"]:
                if (left := end - time.monotonic()) <= 0:
                    error = CannotJoin(self._missing())
                    break
                for key, _ in self._selector.select(left):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        error = error or self._read(key.fileobj)  # pyright: ignore[reportArgumentType]
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
        """Reads what a caller sent; returns why the processes are refused, if they are."""
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
        problem = self._problem_with(who)
        if problem is None:
            self._present[who["index"]] = who
            self._callers[caller] = (data, who["index"])
        return problem

    def _problem_with(self, who: _Caller) -> Refused | None:
        if who["count"] != self._me["count"]:
            return Refused(
                f"{_text(who)} was told that there are {who['count']} processes, {_text(self._me)} that there are "
                f"{self._me['count']}. Give all of them the same number."
            )
        if bool(who.get("secure")) != self._me["secure"]:
            without, with_ = (who, self._me) if self._me["secure"] else (self._me, who)
            return Refused(
                f"{_text(with_)} has JAX_MTLS_CERT_FILE and talks by TLS, {_text(without)} does not. Give all "
                "of them a certificate, or none."
            )
        if (other := self._present.get(who["index"])) is not None:
            return Refused(
                f"two processes have the index {who['index']}: {_text(other)} and {_text(who)}. Each has its own, 0 "
                f"to {self._me['count'] - 1}; see who started the second one."
            )
        return None

    def _missing(self) -> str:
        missing = set(range(self._me["count"])) - set(self._present)
        them = "they" if len(missing) > 1 else "it"
        return (
            f"{name(missing)} of {self._me['count']} did not come to {self._address} within {self._timeout_s:g} s; the "
            f"others are there. See why {them} did not start, and start all of them again."
        )

    def _answer_all(self, error: CannotJoin | None) -> None:
        """Sends the answer to all, and lets each close its side first, so that the port is free at once."""
        answer = json.dumps({"error": str(error or ""), "code": error.exit_code if error else 0}) + "\n"
        for caller in self._callers:
            caller.setblocking(True)
            caller.settimeout(2.0)
            try:
                caller.sendall(answer.encode())
                while caller.recv(_LINE):
                    pass
            except OSError:
                continue


def _call(me: _Caller, address: str, host: str, port: int, end: float) -> None:
    """The part of the others: says who this is and waits for the answer."""
    said = f"process {me['index']} of {me['count']}"
    with _connect(said, address, host, port, end) as caller:
        caller.settimeout(max(0.0, end - time.monotonic()) + timeouts.RENDEZVOUS_ANSWER_S)
        try:
            caller.sendall((json.dumps(me) + "\n").encode())
            data = b""
            while not data.endswith(b"\n") and (more := caller.recv(_LINE)):
                data += more
        except TimeoutError as error:
            raise CannotJoin(
                f"{said}: {address} does not answer in time. See what process 0 does, and start all of them again."
            ) from error
        except OSError:
            data = b""
    found = _parse(data)
    if found is None:
        raise CannotJoin(
            f"{said}: at {address} the processes have joined already, without this one, or something else listens "
            f"there, or process 0 has gone. See whether another process {me['index']} runs, and start all again."
        )
    if found["error"]:
        error = (Refused if found["code"] == Refused.exit_code else CannotJoin)(found["error"])
        raise error


def _connect(said: str, address: str, host: str, port: int, end: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic()))
        except OSError as error:
            if time.monotonic() >= end:
                raise CannotJoin(
                    f"{said}: the coordinator {address} does not answer ({error.strerror or error}). It is process 0 "
                    "that listens there: see that it runs, that the address is right and that the network lets it "
                    "through, then start all processes again."
                ) from error
        time.sleep(timeouts.RENDEZVOUS_RETRY_S)


def name(indices: Iterable[int]) -> str:
    """Returns "process 3" or "processes 1, 3"."""
    known = sorted(indices)
    return f"process{'es' if len(known) > 1 else ''} {', '.join(map(str, known))}"


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
        return found if isinstance(found, dict) and ("index" in found or "error" in found) else None
    except ValueError:
        return None


def _text(who: _Caller) -> str:
    return f"process {who['index']} on {who['host']} (pid {who['pid']})"
