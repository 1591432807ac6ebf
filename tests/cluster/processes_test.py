"""Who a process is: what is read, what is refused with a sentence, and joining that ends in time."""

import os
import re
import socket
import subprocess
import sys

import pytest

from engine.cluster import processes
from engine.cluster.processes import CannotJoin, initialize
from engine.cluster.resolver import Processes


def test_a_single_process_joins_nobody_and_is_the_first():
    initialize(Processes())
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_told():
    address = f"127.0.0.1:{free_port()}"
    words = f"process 1 of 2: the coordinator {address} does not answer (Connection refused). It is process 0 that"
    with pytest.raises(CannotJoin, match=re.escape(words)):
        initialize(Processes(1, 2, address), timeout_s=0.3)


@pytest.mark.parametrize("address", ["192.0.2.1:8476", "nowhere.invalid:8476"])
def test_a_place_where_nobody_may_listen_is_told(address):
    with pytest.raises(CannotJoin, match=f"process 0 of 2: cannot listen at {address} .* an address of this machine"):
        initialize(Processes(0, 2, address))


@pytest.mark.multiprocess
def test_a_first_process_whose_peers_do_not_come_says_so_and_ends():
    """JAX itself would end it by SIGABRT, with a stack of C++."""
    program = (
        "from engine.cluster.processes import initialize\n"
        "from engine.cluster.resolver import Processes\n"
        f"initialize(Processes(0, 2, '127.0.0.1:{free_port()}'), timeout_s=2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == CannotJoin.exit_code == 42
    assert re.fullmatch(r"CannotJoin: process 0: not all 2 processes came to \S+ within 2 s\. .*\n", done.stderr)
