"""Whether the process that a lease names still lives, as far as it can be seen from here."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from engine.run.owner import TOKEN, Owner, is_alive

HERE = Owner()
AWAY = {"boot": "another", "host": "another", "machine": "another"}


@pytest.fixture
def child():
    """A process of this host and the owner that it would be."""
    with subprocess.Popen(
        [sys.executable, "-c", "from engine.run.owner import Owner; print(Owner().started, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, dataclasses.replace(HERE, pid=process.pid, started=process.stdout.readline().strip())
        process.kill()


def test_this_process_lives_and_is_named():
    assert is_alive(HERE) is True
    assert str(HERE) == f"process {os.getpid()} on host {HERE.host}, since {HERE.since}"


def test_a_process_lives_until_it_is_killed_and_not_as_a_zombie(child):
    process, owner = child
    assert is_alive(owner) is True
    process.kill()
    end = time.monotonic() + 30
    while is_alive(owner) is not False:  # not waited for, so its pid is still there
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, 0)
    process.wait()
    assert is_alive(owner) is False


def test_another_process_of_the_same_pid_is_not_the_owner():
    """In containers that start again every first process has pid 1."""
    assert is_alive(dataclasses.replace(HERE, started="1")) is False


@pytest.mark.parametrize(
    "elsewhere",
    [
        AWAY,
        {"namespace": "pid:[1]"},  # another container of this host, whose pids mean nothing here
        {"boot": "another", "namespace": "pid:[1]"},  # a container of the same name on another host
        {"boot": "another", "host": "another"},
        {"boot": "another", "machine": ""},
        {"boot": "", "namespace": "", "host": "another"},
    ],
)
def test_what_cannot_be_seen_is_not_known(elsewhere):
    assert is_alive(dataclasses.replace(HERE, pid=1, started="1", **elsewhere)) is None


@pytest.mark.skipif(HERE.namespace != "pid:[4026531836]" or not HERE.machine, reason="in a container")
def test_a_machine_that_was_started_anew_has_none_of_its_processes():
    assert is_alive(dataclasses.replace(HERE, boot="another")) is False


def test_a_job_hands_its_token_down(monkeypatch):
    monkeypatch.setenv(TOKEN, "job-7")
    assert Owner().token == "job-7"
    assert Owner().id != Owner().id
