"""Who a process is: what is read, what is refused with a sentence, and joining that ends in time."""

import re
import socket
import time

import pytest

from engine.cluster import group
from engine.cluster.cluster_detection import Processes
from engine.cluster.processes import CannotJoin, initialize


def test_a_single_process_joins_nobody_and_is_the_primary():
    initialize(Processes())
    assert (group.index(), group.count(), group.is_primary()) == (0, 1, True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_reported():
    address = f"127.0.0.1:{free_port()}"
    words = f"process 1 of 2: the coordinator {address} does not answer (Connection refused). It is process 0 that"
    with pytest.raises(CannotJoin, match=re.escape(words)):
        initialize(Processes(1, 2, address), timeout_s=0.3)


@pytest.mark.parametrize("address", ["192.0.2.1:8476", "nowhere.invalid:8476"])
def test_an_address_that_cannot_be_bound_is_reported(address):
    with pytest.raises(CannotJoin, match=f"process 0 of 2: cannot listen at {address} .* an address of this machine"):
        initialize(Processes(0, 2, address), timeout_s=0.5)


def test_process_0_waits_for_its_own_name_to_resolve():
    """A pod's name is known some seconds after the pod is there."""
    from engine.cluster.processes import _bind_address

    begin = time.monotonic()
    assert _bind_address(Processes(0, 2, "nowhere.invalid:1"), 0.6) == "nowhere.invalid:1"
    assert time.monotonic() - begin >= 0.6
    assert _bind_address(Processes(0, 2, "127.0.0.1:1"), 60) == "127.0.0.1:1"


def test_process_0_names_the_peers_that_do_not_come():
    """JAX itself would end it by SIGABRT, with a stack of C++. All else about it is in rendezvous_test.py."""
    words = r"process 1 of 2 did not come to \S+ within 0.3 s; the others are there. See why it did not start"
    with pytest.raises(CannotJoin, match=words):
        initialize(Processes(0, 2, f"127.0.0.1:{free_port()}"), timeout_s=0.3)
