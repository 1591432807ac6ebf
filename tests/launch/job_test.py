import errno
import signal
import socket
import subprocess
import sys

import pytest

from engine.launch.job import Job, reserved_port
from engine.launch.local import environment, run_here
from engine.launch.signals import Signals
from tests.launch.programs import wait_until_gone

pytestmark = pytest.mark.multiprocess


def test_output_of_a_process_of_another_machine_goes_to_its_launcher(tmp_path):
    """As in a launcher of several machines: one process of a job of four, in a folder, with its output in order."""
    lines, program = [], "import os; os.write(1, os.getcwd().encode() + b'\\n'); os.write(2, b'second\\n')"
    job = Job(tmp_path, lambda stream, text: lines.append((stream is sys.stdout, text)))
    variables = environment({}, 3, 4, "127.0.0.1:1", tmp_path, "token")
    words = [sys.executable, "-c", f"import os; {program}; os._exit(int(os.environ['CONVOY_NUM_PROCESSES']))"]
    outcome = run_here(job, words, {3: variables}, signals=Signals(), cwd=str(tmp_path))
    assert sorted(lines) == [(False, "[3] second\n"), (True, f"[3] {tmp_path}\n")]
    [ended] = outcome.exits
    assert (ended.index, ended.code, ended.pid, outcome.unexplained) == (3, 4, job.pids[3], {3})


def test_port_is_not_given_to_others_while_it_is_reserved():
    with reserved_port("127.0.0.1") as port, socket.socket() as other:
        if sys.platform.startswith("linux"):
            with pytest.raises(OSError) as raised:
                other.bind(("127.0.0.1", port))
            assert raised.value.errno == errno.EADDRINUSE
            socket.create_server(("127.0.0.1", port)).close()  # process 0 may
        assert port > 0


def test_job_that_is_left_kills_its_processes(tmp_path):
    with Job(tmp_path) as job:
        job.start(["sleep", "3600"], {0: {}, 1: {}}, alone=False)
        pids = [*job.pids.values()]
        assert subprocess.run(["kill", "-0", *map(str, pids)]).returncode == 0
    wait_until_gone(pids)
    assert job.killed == {0, 1}


def test_processes_start_without_blocked_signals(tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        lines = []
        words = [sys.executable, "-c", "import signal; print(*signal.pthread_sigmask(signal.SIG_BLOCK, ()))"]
        run_here(Job(tmp_path, lambda stream, text: lines.append(text)), words, {0: {}}, signals=Signals())
        assert lines == ["[0] \n"] and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
