"""Processes that a signal has stopped: named after a while, and ended if others wait for them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from engine.launch import timeouts
from engine.launch.stopped import StoppedProcesses

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what is stopped"),
]


@pytest.fixture
def pids():
    """Two processes that sleep."""
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield {index: {process.pid} for index, process in enumerate(processes)}
    for process in processes:
        process.kill()
        process.wait()


def stop(pids: set[int]) -> None:
    (pid,) = pids
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def follow(followed: StoppedProcesses, pids, ended: int = 0) -> tuple[list[str], dict[int, str]]:
    """Polls until a process must be ended, or twice as often as that takes; returns all messages, and the ends."""
    messages = []
    for _ in range(round(2 * timeouts.STOPPED_S / timeouts.STOPPED_POLL_S)):
        ends = followed.poll(pids, ended)
        messages += followed.messages
        if ends:
            return messages, ends
        time.sleep(timeouts.STOPPED_POLL_S)
    return messages, {}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A hundredth of the real times."""
    for name in ("STOPPED_POLL_S", "STOPPED_NAMED_S", "STOPPED_S"):
        monkeypatch.setattr(timeouts, name, getattr(timeouts, name) / 100)


def test_stopped_process_is_named_once_and_ended_later(pids):
    stop(pids[1])
    (pid,) = pids[1]
    (named,), ends = follow(StoppedProcesses(several=True), pids)
    assert named.startswith(
        f"process 1 (pid {pid}) has been stopped by a signal, such as SIGSTOP, for 0 s. `kill -CONT"
    )
    assert named.endswith("The launcher ends it after 0 s, since the others wait for it.")
    assert ends[1].startswith(f"process 1 (pid {pid}) was stopped by a signal for 0 s, and the others waited for it.")
    assert [*ends] == [1]


@pytest.mark.parametrize(("several", "name"), [(True, "process 0 "), (False, "the process ")])
def test_job_that_is_stopped_as_a_whole_is_named_but_not_ended(pids, several, name):
    """As when a scheduler suspends it. A job of one process is always stopped as a whole."""
    if not several:
        del pids[1]
    for each in pids.values():
        stop(each)
    messages, ends = follow(StoppedProcesses(several), pids)
    assert ends == {} and len(messages) == len(pids)
    assert messages[0].startswith(name) and messages[0].endswith("` continues it.")


def test_process_that_is_stopped_after_the_others_have_ended_is_ended(pids):
    stop(pids[1])
    assert [*follow(StoppedProcesses(several=True), {1: pids[1]}, ended=1)[1]] == [1]


def test_process_that_continues_is_named_and_not_ended(pids):
    followed = StoppedProcesses(several=True)
    stop(pids[1])
    while not followed.messages:
        assert followed.poll(pids, 0) == {}
        time.sleep(timeouts.STOPPED_POLL_S)
    os.kill(next(iter(pids[1])), signal.SIGCONT)
    assert follow(followed, pids) == (["process 1 continues."], {})


def test_time_in_which_the_launcher_was_stopped_does_not_count(pids):
    stop(pids[1])
    followed = StoppedProcesses(several=True)
    time.sleep(timeouts.STOPPED_S)
    assert followed.poll(pids, 0) == {} and followed.messages == []
