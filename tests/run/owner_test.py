"""Whether the process that a lease names is still alive, as far as this process can know."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from engine.run.owner import TOKEN, Owner, is_alive

HERE = Owner()
REMOTE = {"boot": "another", "host": "another", "machine": "another"}


@pytest.fixture
def child():
    """A process on this host and its `Owner`."""
    with subprocess.Popen(
        [sys.executable, "-c", "from engine.run.owner import Owner; print(Owner().started, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, dataclasses.replace(HERE, pid=process.pid, started=process.stdout.readline().strip())
        process.kill()


def test_this_process_is_alive_and_its_text_names_it():
    assert is_alive(HERE) is True
    assert str(HERE) == f"process {os.getpid()} on host {HERE.host}, since {HERE.since}"


def test_killed_process_is_not_alive_even_as_a_zombie(child):
    process, owner = child
    assert is_alive(owner) is True
    process.kill()
    end = time.monotonic() + 30
    while is_alive(owner) is not False:  # not waited for, so its pid still exists
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, 0)
    process.wait()
    assert is_alive(owner) is False


def test_reused_pid_is_not_the_owner():
    """In containers that restart, the first process always has pid 1."""
    assert is_alive(dataclasses.replace(HERE, started="1")) is False


@pytest.mark.parametrize(
    "elsewhere",
    [
        REMOTE,
        {"namespace": "pid:[1]"},  # another container of this host, whose pids mean nothing here
        {"boot": "another", "namespace": "pid:[1]"},  # a container of the same name on another host
        {"boot": "another", "host": "another"},
        {"boot": "another", "machine": ""},
        {"boot": "", "namespace": "", "host": "another"},
    ],
)
def test_is_alive_returns_none_for_processes_elsewhere(elsewhere):
    assert is_alive(dataclasses.replace(HERE, pid=1, started="1", **elsewhere)) is None


@pytest.mark.skipif(HERE.namespace != "pid:[4026531836]" or not HERE.machine, reason="in a container")
def test_owner_from_before_a_reboot_is_dead():
    assert is_alive(dataclasses.replace(HERE, boot="another")) is False


def test_owner_reads_the_token_from_the_environment(monkeypatch):
    monkeypatch.setenv(TOKEN, "job-7")
    assert Owner().token == "job-7"
    assert Owner().id != Owner().id
