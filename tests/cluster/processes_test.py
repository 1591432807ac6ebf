"""Who a process is: what is read, what is refused with a sentence, and joining that ends in time."""

import os
import re
import socket
import subprocess
import sys

import pytest

from engine.cluster import processes
from engine.cluster.processes import CannotJoin, Processes, initialize, resolve
from engine.config.errors import ConfigError

THREE = {"CONVOY_COORDINATOR": "10.0.0.1:8476", "CONVOY_NUM_PROCESSES": "4", "CONVOY_PROCESS_ID": "2"}


def test_none_of_the_three_is_a_single_process():
    assert resolve({}, {}) == Processes(0, 1)
    assert resolve({"count": None}, {"CONVOY_COORDINATOR": ""}) == Processes(0, 1)


def test_flags_win_over_variables():
    assert resolve({}, THREE) == Processes(2, 4, "10.0.0.1:8476")
    flags = {"coordinator": "[fd00::1]:99", "count": None, "index": "3"}
    assert resolve(flags, THREE) == Processes(3, 4, "[fd00::1]:99")


@pytest.mark.parametrize(
    ("flags", "changes", "words"),
    [
        ({}, {"CONVOY_PROCESS_ID": ""}, "CONVOY_NUM_PROCESSES=4, but not --process-id or CONVOY_PROCESS_ID (0 to"),
        ({"index": "0"}, dict.fromkeys(THREE, ""), "found --process-id=0, but not --coordinator or CONVOY_COORDINATOR"),
        ({}, {"CONVOY_PROCESS_ID": "4"}, "CONVOY_PROCESS_ID = 4: allowed is 0 to 3, as there are CONVOY_NUM_PRO"),
        ({"index": "-1"}, {}, "--process-id = '-1': allowed is 0 to 3"),
        ({"count": "two"}, {}, "--num-processes = 'two': allowed is a number of processes from 1. Give a whole number"),
        ({"count": "0"}, {}, "--num-processes = '0': allowed is a number of processes from 1"),
        ({"coordinator": "10.0.0.1"}, {}, "--coordinator = '10.0.0.1': allowed is HOST:PORT with a port from 1 to"),
        ({"coordinator": "a:b:1"}, {}, "--coordinator = 'a:b:1': allowed is HOST:PORT"),
        ({"coordinator": "host:70000"}, {}, "It is the address of process 0, the same in every process."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(flags, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolve(flags, THREE | changes)


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
        "from engine.cluster.processes import Processes, initialize\n"
        f"initialize(Processes(0, 2, '127.0.0.1:{free_port()}'), timeout_s=2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == CannotJoin.exit_code == 42
    assert re.fullmatch(r"CannotJoin: process 0: not all 2 processes came to \S+ within 2 s\. .*\n", done.stderr)
