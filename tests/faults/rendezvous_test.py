"""Processes that cannot form a group: missing, with the same index, or without a free port."""

import socket
import sys
import time

import pytest

from engine.cluster.exit_status import ExitStatus
from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess]


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(address: str, count: int, *indices: int, words: tuple[str, ...]) -> list[tuple[int, str, float]]:
    """Starts training processes as a launcher does; returns exit code, output and seconds of each."""
    begin = time.monotonic()
    who = {"CONVOY_COORDINATOR": address, "CONVOY_NUM_PROCESSES": str(count)}
    processes = [
        runs.begin([*words], None, runs.environment(**who, CONVOY_PROCESS_ID=str(index)), apart=False)
        for index in indices
    ]
    ends = []
    for process in processes:
        output, _ = process.communicate(timeout=180)
        ends.append((process.returncode, output, time.monotonic() - begin))
    return ends


def train(folder) -> tuple[str, ...]:
    config = harness.config(folder / "config", mesh__data=-1)
    return tuple(runs.command("train", config, f"--workdir={folder / 'run'}"))


@pytest.mark.case("processes that do not start")
def test_missing_processes_are_reported_to_those_that_started(address, tmp_path, add_row):
    """In 6 seconds instead of the 5 minutes that hosts of a job have."""
    program = (
        "from engine.cluster import cluster_detection, processes\n"
        "from engine.base.errors import ConvoyError\nimport sys\n"
        "try:\n    processes.initialize(cluster_detection.detect().process, timeout_s=6)\n"
        "except ConvoyError as error:\n    print(error)\n    sys.exit(error.exit_code)"
    )
    ends = start(address, 4, 0, 2, words=(sys.executable, "-c", program))
    for code, output, _ in ends:
        assert code == ExitStatus.RETRY, output
        assert output.startswith(f"processes 1, 3 of 4 did not reach {address} within 6 s; all others did.")
    assert max(seconds for _, _, seconds in ends) < runs.limit(6 + 15)  # and Python's own start
    add_row("two of four processes do not start", detected_s=max(s for *_, s in ends), code=ExitStatus.RETRY)


@pytest.mark.case("processes that do not start")
def test_process_that_ends_with_0_before_the_others_have_joined_ends_the_job(tmp_path, add_row):
    """The same config ends one process: `os._exit(0)` leaves no error behind."""
    (tmp_path / "leaving.py").write_text(
        "import os\nfrom tests import runs\n\n\ndef get_config():\n"
        "    if os.environ['CONVOY_PROCESS_ID'] == '1':\n        os._exit(0)\n    return runs.config()\n"
    )
    words = ("train", f"--config={tmp_path / 'leaving.py'}", f"--workdir={tmp_path / 'run'}")
    with harness.Job(*words, processes=3) as job:
        code, seconds = job.end(), time.monotonic() - job.started
        *_, summary, last = job.output.splitlines()
    assert code == ExitStatus.USER_ERROR
    assert seconds < runs.limit(15)
    assert last.startswith("[1] process 1 ended with exit code 0 before it was done: its code or a library called os._")
    assert summary.startswith("convoy launch: process 1 ended first, with 1 (the user's error); then ")
    assert "0: " in summary.partition("; then ")[2] and "2: " in summary.partition("; then ")[2]
    add_row("one of three processes ends with 0 before it has joined", detected_s=seconds, code=code)


@pytest.mark.case("two processes with one index")
def test_two_processes_with_one_index_are_refused(address, tmp_path, add_row):
    ends = start(address, 3, 0, 1, 1, words=train(tmp_path))
    for code, output, _ in ends:
        assert code == ExitStatus.USER_ERROR, output
        last = output.splitlines()[-1]
        assert last.startswith("ConflictingSettings: two processes have the index 1: process 1 on ")
        assert last.count(f"process 1 on {socket.gethostname()} (pid ") == 2
    assert not (tmp_path / "run").exists()
    add_row("two processes with one index", detected_s=max(s for *_, s in ends), code=ExitStatus.USER_ERROR)


@pytest.mark.case("the coordinator's port is taken")
def test_occupied_coordinator_port_is_reported_at_once(tmp_path, add_row):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ((code, output, seconds),) = start(address, 2, 0, words=train(tmp_path))
    assert code == ExitStatus.RETRY
    last = output.splitlines()[-1]
    assert last.startswith(f"CannotJoin: process 0 of 2: cannot listen at {address} (Address already in use).")
    assert "Give an address of this machine and a free port" in last
    add_row("the coordinator's port is taken", detected_s=seconds, code=code)
