"""The roll call before processes join: who is there, who is missing, who comes twice.

Owns: a short exchange on the coordinator's port before JAX listens there, since JAX tells none of this: it waits, and
then kills the process. Does not own: the settings that say who one is (`processes.py`), or what is agreed on later.

Each process sends a line of JSON to process 0 and waits for its answer, a line too; process 0 answers when all are
there, when one must be refused, or when the time is up. One that goes away before the answer is missing again.
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any

from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError

_LINE = 4096  # bytes at most
_ANSWER_S = 10.0  # beyond the time limit, for the answer of process 0 to arrive
_RETRY_S = 0.1


class CannotJoin(ConvoyError):
    """The processes of a run did not find each other."""

    exit_code = ExitStatus.RETRY
    from_outside = True


class Refused(CannotJoin):
    """The processes were not told who they are as they should have been: the same again would fail again."""

    exit_code = ExitStatus.USER_ERROR
    from_outside = False


def hold(index: int, count: int, address: str, host: str, port: int, timeout_s: float, *, secure: bool = False) -> None:
    """Takes part in the roll call; returns when all processes are there.

    Args:
        index: of this process.
        count: of all.
        address: of the coordinator, as it was given.
        host, port: where process 0 listens, and where the others find it.
        timeout_s: seconds for all to come.
        secure: whether this process will talk by TLS once all are there; the roll call itself does not.

    Raises:
        CannotJoin: process 0 cannot listen or is not reached, or not all came in time.
        Refused: two processes have the same index, or they disagree on their number or on TLS.
    """
    end = time.monotonic() + timeout_s
    me = {"index": index, "count": count, "host": socket.gethostname(), "pid": os.getpid(), "secure": secure}
    if index == 0:
        with _listen(count, address, host, port) as listener:
            _Call(me, listener, address, timeout_s).run(end)
    else:
        _answer(me, address, host, port, end)


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


class _Call:
    """Process 0's part."""

    def __init__(self, me: dict[str, Any], listener: socket.socket, address: str, timeout_s: float):
        self._me, self._listener, self._address, self._timeout_s = me, listener, address, timeout_s
        self._here: dict[int, dict[str, Any]] = {0: me}
        self._callers: dict[socket.socket, tuple[bytes, int | None]] = {}  # what was sent so far, and the index
        self._selector = selectors.DefaultSelector()

    def run(self, end: float) -> None:
        """Collects the others; answers all of them."""
        error: CannotJoin | None = None
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while error is None and len(self._here) < self._me["count"]:
                if (left := end - time.monotonic()) <= 0:
                    error = CannotJoin(self._missing())
                    break
                for key, _ in self._selector.select(left):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        error = error or self._read(key.fileobj)  # pyright: ignore[reportArgumentType]
            self._tell_all(error)
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
        """Takes what a caller sent; returns why it is refused."""
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
                del self._here[index]
            return None
        who = _parse(data) if data.endswith(b"\n") else None
        if who is None or index is not None:
            self._callers[caller] = (data, index)
            return None
        problem = self._problem(who)
        if problem is None:
            self._here[who["index"]] = who
            self._callers[caller] = (data, who["index"])
        return problem

    def _problem(self, who: dict[str, Any]) -> Refused | None:
        if who["count"] != self._me["count"]:
            return Refused(
                f"{_words(who)} was told that there are {who['count']} processes, {_words(self._me)} that there are "
                f"{self._me['count']}. Give all of them the same number."
            )
        if bool(who.get("secure")) != self._me["secure"]:
            without, with_ = (who, self._me) if self._me["secure"] else (self._me, who)
            return Refused(
                f"{_words(with_)} has JAX_MTLS_CERT_FILE and talks by TLS, {_words(without)} does not. Give all "
                "of them a certificate, or none."
            )
        if (other := self._here.get(who["index"])) is not None:
            return Refused(
                f"two processes have the index {who['index']}: {_words(other)} and {_words(who)}. Each has its own, 0 "
                f"to {self._me['count'] - 1}; see who started the second one."
            )
        return None

    def _missing(self) -> str:
        missing = set(range(self._me["count"])) - set(self._here)
        them = "they" if len(missing) > 1 else "it"
        return (
            f"{name(missing)} of {self._me['count']} did not come to {self._address} within {self._timeout_s:g} s; the "
            f"others are there. See why {them} did not start, and start all of them again."
        )

    def _tell_all(self, error: CannotJoin | None) -> None:
        """Sends the answer to all, and lets each close its side first: the port is free at once then."""
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


def _answer(me: dict[str, Any], address: str, host: str, port: int, end: float) -> None:
    """The part of the others: says who this is and takes the answer."""
    said = f"process {me['index']} of {me['count']}"
    with _connect(said, address, host, port, end) as caller:
        caller.settimeout(max(0.0, end - time.monotonic()) + _ANSWER_S)
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
        time.sleep(_RETRY_S)


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


def _words(who: dict[str, Any]) -> str:
    return f"process {who['index']} on {who['host']} (pid {who['pid']})"
