"""Where processes were started: by a launcher on this machine, or by a scheduler whose variables tell."""

import os
import signal
import socket
import subprocess

import pytest

from engine.cluster import origins, verdict

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes this process number 0 of a launch."""
    monkeypatch.setenv(verdict.VARIABLE, str(tmp_path / "0.json"))
    return tmp_path


def test_launched_processes_are_described_by_pid_and_state(folder):
    with subprocess.Popen(["sleep", "60"]) as process:
        origins.record_start(folder, 1, process.pid)
        where = f"as pid {process.pid} on {socket.gethostname()}"
        assert origins.described([1, 2], 0, 3) == f" Process 1 was started by convoy {where}."
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert origins.described([1], 0, 3).endswith(
            f"{where} and is stopped (`kill -CONT {process.pid}` continues it)."
        )
        process.kill()
    origins.record_exit(folder, 1, 137)
    assert origins.described([1], 0, 3).endswith(f"{where} and has ended with exit code 137.")


def test_processes_that_ended_with_0_are_known_to_the_others_and_then_to_the_launcher(folder):
    for index, code in enumerate([0, 1, 0]):
        origins.record_exit(folder, index, code)
    assert origins.ended([1, 2, 3]) == [2]
    origins.record_missed([2])
    assert [origins.was_missed(folder, i) for i in range(3)] == [False, False, True]


SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "gpu[01-02],cpu7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "5",
}
JOBSET = {
    "JOBSET_NAME": "big", "REPLICATED_JOB_NAME": "worker", "JOBS": "2", "PODS_PER_JOB": "2",
    "JOB_GLOBAL_INDEX": "0", "JOB_COMPLETION_INDEX": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "count", "text"),
    [
        (SLURM, 5, " Process 3 is task 3 of Slurm's job 17 on node gpu02."),
        (SLURM | {"SLURM_DISTRIBUTION": "block:cyclic"}, 5, " Process 3 is task 3 of Slurm's job 17 on node gpu02."),
        (SLURM | {"SLURM_DISTRIBUTION": "cyclic"}, 5, ""),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu01"}, 5, ""),
        (SLURM, 4, ""),  # these processes were started in another way
        (SLURM | {"SLURM_PROCID": "1"}, 5, ""),
        (JOBSET, 4, " Process 3 runs in the pod with host name big-worker-1-1."),
        (
            {"SKYPILOT_NODE_IPS": "a\nb\nc\nd", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "4"}, 4,
            " Process 3 is SkyPilot's rank 3 on node d.",
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0"}, 4, " Process 3 is TPU worker 3 on host d."),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"}, 4, ""),
        ({}, 4, ""),
    ],
)  # fmt: skip
def test_variables_of_a_scheduler_tell_the_node(environment, count, text):
    assert origins.described([3], 0, count, environment) == text


def test_few_of_many_processes_are_described():
    environment = {"TPU_WORKER_HOSTNAMES": ",".join("abcdefgh"), "TPU_WORKER_ID": "0"}
    text = origins.described(range(1, 8), 0, 8, environment)
    assert text.startswith(" Process 1 is TPU worker 1 on host b; process 2 ") and text.count("; process") == 3
    assert text.endswith("; ... (7 processes).")


def test_slurm_node_lists_are_expanded():
    assert origins.hosts("n1") == ["n1"]
    assert origins.hosts("gpu[1-3,7],cpu[09-10]") == ["gpu1", "gpu2", "gpu3", "gpu7", "cpu09", "cpu10"]
    assert origins.hosts("r[0-1]n[1-2]-x") == ["r0n1-x", "r0n2-x", "r1n1-x", "r1n2-x"]
