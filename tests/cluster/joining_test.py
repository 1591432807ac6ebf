"""Joining the processes of a run: errors that name the problem, within the timeout."""

import re
import socket
import sys
import time

import pytest

from engine.cluster import rendezvous
from engine.cluster.cluster_detection import ProcessInfo
from engine.cluster.joining import _bind_address
from engine.cluster.processes import initialize
from engine.cluster.rendezvous import CannotJoin


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_unreachable_coordinator_raises():
    address = f"127.0.0.1:{free_port()}"
    words = f"process 1 of 2: the coordinator {address} does not answer (Connection refused). Process 0 listens"
    with pytest.raises(CannotJoin, match=re.escape(words)):
        initialize(ProcessInfo(1, 2, address), timeout_s=0.3)


@pytest.mark.parametrize("address", ["192.0.2.1:8476", "nowhere.invalid:8476"])
def test_address_that_cannot_be_bound_raises(address):
    with pytest.raises(CannotJoin, match=f"process 0 of 2: cannot listen at {address} .* an address of this machine"):
        initialize(ProcessInfo(0, 2, address), timeout_s=0.5)


def test_process_0_waits_for_its_host_name_to_resolve():
    """A pod's name resolves only some seconds after the pod has started."""
    begin = time.monotonic()
    assert _bind_address(ProcessInfo(0, 2, "nowhere.invalid:1"), 0.6) == "nowhere.invalid:1"
    assert time.monotonic() - begin >= 0.6
    assert _bind_address(ProcessInfo(0, 2, "127.0.0.1:1"), 60) == "127.0.0.1:1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux checks the port again")
def test_port_that_is_taken_after_the_rendezvous_is_a_sentence_and_no_crash(monkeypatch):
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def take_port(*arguments, **settings):
            other.bind(("127.0.0.1", port))
            other.listen()

        monkeypatch.setattr(rendezvous, "wait_for_all", take_port)
        with pytest.raises(CannotJoin, match=rf"process 0 of 2: cannot listen at 127.0.0.1:{port} .* a free port"):
            initialize(ProcessInfo(0, 2, f"127.0.0.1:{port}"), timeout_s=5)


def test_process_0_names_the_missing_peers():
    """JAX itself would end it with SIGABRT and a C++ stack. rendezvous_test.py has the other cases."""
    words = r"process 1 of 2 did not reach \S+ within 0.3 s; all others did. Check why it did not start"
    with pytest.raises(CannotJoin, match=words):
        initialize(ProcessInfo(0, 2, f"127.0.0.1:{free_port()}"), timeout_s=0.3)
