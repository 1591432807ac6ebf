"""The rendezvous, with threads as processes: all present, one missing, duplicate, or reconnecting."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.cluster import host_address, rendezvous
from engine.cluster.rendezvous import CannotJoin, ConflictingSettings, Endpoint, UnreachableHost
from tests import runs


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def local(port):
    return Endpoint(f"127.0.0.1:{port}", "127.0.0.1", port)


def wait_for_all(index, port, count=3, timeout_s=20.0, secure=(), cpu=False):
    """Returns "" if all processes have called, otherwise the error."""
    settings = {"secure": index in secure, "cpu_collectives": cpu}
    try:
        rendezvous.wait_for_all(index, count, local(port), timeout_s, **settings)
    except CannotJoin as error:
        return error
    return ""


def together(port, *indices, counts=None, **settings):
    with ThreadPoolExecutor(len(indices)) as pool:
        ends = [
            pool.submit(wait_for_all, index, port, **({"count": count} if count else {}), **settings)
            for index, count in zip(indices, counts or [None] * len(indices), strict=True)
        ]
        return [end.result() for end in ends]


def test_all_processes_meet_and_the_port_is_free_immediately(port):
    for _ in range(3):
        assert together(port, 2, 0, 1) == ["", "", ""]
        with socket.socket() as after:
            after.bind(("127.0.0.1", port))


def test_missing_processes_are_reported_to_all_after_the_timeout(port):
    begin = time.monotonic()
    first, other = together(port, 0, 2, count=4, timeout_s=2.0)
    assert time.monotonic() - begin < runs.limit(8)
    words = f"processes 1, 3 of 4 did not reach 127.0.0.1:{port} within 2 s; all others did."
    assert str(first).startswith(words) and str(other).startswith(words)
    assert type(first) is type(other) is CannotJoin and CannotJoin.exit_code == 42


def test_duplicate_index_error_names_both_hosts(port):
    ends = together(port, 0, 1, 1)
    here = f"process 1 on {socket.gethostname()} (pid {os.getpid()})"
    for end in ends:
        assert str(end).startswith(
            f"two processes have the index 1: {here} and {here}. Each process needs its own index, 0 to 2"
        )
        assert isinstance(end, ConflictingSettings) and end.exit_code == 1


def test_different_process_counts_raise(port):
    first, other = together(port, 0, 1, counts=[3, 2])
    assert " expects 2 processes, process 0 on " in str(first) and " expects 3. " in str(first)
    assert str(first) == str(other)


def test_process_0_may_open_a_connection_to_each_process():
    program = (
        "import resource, sys\n"
        "from engine.cluster.rendezvous import CannotJoin, _allow_connections\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1024))\n"
        "_allow_connections(100)\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "_allow_connections(900)\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "try:\n"
        "    _allow_connections(10_000)\n"
        "except CannotJoin as error:\n"
        "    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=runs.environment())
    assert done.stdout.splitlines() == [
        "612 1024",
        "1024 1024",
        "1 process 0 of 10000 may open 1024 files, too few for a connection to each other process. Raise its hard "
        "limit to 10512 (ulimit -n, or LimitNOFILE of a service), then start all processes again.",
    ], done.stderr


def caller_of(index: int) -> rendezvous._Caller:
    return rendezvous._Caller(
        index=index, count=6, host="h", pid=1, secure=False, network="n", own_address="", route="127.0.0.1"
    )


def test_stopped_processes_delay_the_end_of_the_rendezvous_together(port):
    """They do not close their connection; one alone delays it by 2 s."""
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        first = pool.submit(wait_for_all, 0, port, count=6)
        for index in range(1, 6):
            caller = rendezvous._connect(caller_of(index), local(port), time.monotonic() + 20, 0.1)
            stack.enter_context(caller)
            caller.sendall(b'{"index": %d, "count": 6, "host": "h", "pid": 1, "secure": false}\n' % index)
        begin = time.monotonic()
        assert first.result(60) == ""
        assert time.monotonic() - begin < runs.limit(8)


@pytest.mark.parametrize("secure", [(0,), (1,)])
def test_different_tls_settings_raise(port, secure):
    for end in together(port, 0, 1, counts=(2, 2), secure=secure):
        assert isinstance(end, ConflictingSettings)
        with_, _, without = str(end).partition(" has JAX_MTLS_CERT_FILE")
        assert int(with_.split()[1]) in secure and int(without.split(", process ")[1][0]) not in secure
        assert str(end).endswith("Give all of them a certificate, or none.")


def test_processes_with_tls_meet(port):
    assert together(port, 0, 1, 2, secure=(0, 1, 2)) == ["", "", ""]


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize("cpu", [False, True])
def test_loopback_address_is_an_error_between_cpus_of_several_hosts(port, hosts, cpu, monkeypatch):
    """Each thread is a host. tests/launch/hosts_test.py has two real ones."""
    monkeypatch.setattr(host_address, "network_id", lambda: str(threading.get_ident() if hosts > 1 else 0))
    monkeypatch.setattr(host_address, "own_address", lambda: "127.0.1.1")
    monkeypatch.setattr(host_address, "is_loopback", lambda address: address == "127.0.1.1")
    ends, me = together(port, 0, 1, 2, cpu=cpu), socket.gethostname()
    if not cpu or hosts == 1:
        assert ends == ["", "", ""]
        return
    for end in ends:
        assert isinstance(end, UnreachableHost) and end.exit_code == 1
        assert str(end).startswith(f"process 0 on {me} (pid {os.getpid()}) resolves the name of its host to 127.0.1.1")
        assert str(end).count(f"`127.0.0.1 {me}` on {me}") == 3


def test_process_may_reconnect_and_other_clients_are_ignored(port):
    def late():
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n")
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(json.dumps({"index": 1, "count": 3, "host": "a", "pid": 1}).encode() + b"\n")
                time.sleep(0.2)
            time.sleep(0.2)
            ends.extend(together(port, 1, 2))

    ends = []
    thread = threading.Thread(target=late)
    with socket.socket() as probe:  # until process 0 listens
        starter = threading.Thread(target=lambda: ends.append(wait_for_all(0, port)))
        starter.start()
        while probe.connect_ex(("127.0.0.1", port)):
            time.sleep(0.01)
    thread.start()
    thread.join()
    starter.join()
    assert ends == ["", "", ""]


def test_port_in_use_raises(port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        words = rf"process 0 of 3: cannot listen at 127.0.0.1:{port} \(Address already in use\)\. .*another process 0"
        with pytest.raises(CannotJoin, match=words):
            rendezvous.wait_for_all(0, 3, local(port), 1.0)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux reserves a port by a socket that does not listen"
)
def test_reserved_port_is_free_for_the_server_of_process_0_and_for_no_other_program(port):
    with rendezvous.port_reserved(2, Endpoint("host:1", "127.0.0.1", port)) as check:
        check()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
            with pytest.raises(CannotJoin, match=r"process 0 of 2: cannot listen at host:1 \(Address already in use\)"):
                check()
        check()


def test_another_server_at_the_address_raises(port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()

        def serve():
            caller, _ = other.accept()
            caller.sendall(b"\x00\x00HTTP/2 whatever")
            caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CannotJoin, match=r"have already joined without this process, or another program listens"):
            rendezvous.wait_for_all(1, 3, local(port), 5.0)
        thread.join()
