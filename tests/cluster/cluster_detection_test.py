"""Detection of the process from the variables of each scheduler, and errors for invalid settings."""

import re
import zlib

import pytest

from engine.base.errors import ConfigError
from engine.cluster.cluster_detection import ProcessInfo, detect, first_host

THREE = {"CONVOY_COORDINATOR": "10.0.0.1:8476", "CONVOY_NUM_PROCESSES": "4", "CONVOY_PROCESS_ID": "2"}


def test_no_settings_detect_a_single_process():
    assert detect({}, {}).process == ProcessInfo(0, 1)
    assert detect({"count": None}, {"CONVOY_COORDINATOR": ""}).process == ProcessInfo(0, 1)


def test_flags_take_precedence_over_variables():
    assert detect({}, THREE).process == ProcessInfo(2, 4, "10.0.0.1:8476")
    flags = {"coordinator": "[fd00::1]:99", "count": None, "index": "3"}
    assert detect(flags, THREE).process == ProcessInfo(3, 4, "[fd00::1]:99")


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
def test_invalid_settings_raise(flags, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        detect(flags, THREE | changes)


def port(job: str) -> int:
    """Returns the coordinator's port if the scheduler sets none: equal in a job, different for most other jobs."""
    return 61440 + zlib.crc32(job.encode()) % 4096


KUBEFLOW = {
    "JAX_COORDINATOR_ADDRESS": "train-node-0-0.train", "JAX_COORDINATOR_PORT": "29500", "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3", "JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}  # fmt: skip
JAXJOB = {"COORDINATOR_ADDRESS": "job-worker-0", "COORDINATOR_PORT": "6666", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}
XPK_CPU = {
    "JAX_COORDINATOR_ADDRESS": "run-cpu-0-0.run", "JAX_PROCESS_COUNT": "8", "PROCESSES_IN_JOB": "4", "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}  # fmt: skip
XPK_GPU = {
    "JAX_COORDINATOR_ADDRESS": "run-gpu-0-0.run", "JAX_COORDINATOR_PORT": "6002", "NNODES": "2", "NODE_RANK": "1",
    "JOB_COMPLETION_INDEX": "1",
}  # fmt: skip
JOBSET = {
    "JOBSET_NAME": "run", "REPLICATED_JOB_NAME": "workers", "JOB_GLOBAL_INDEX": "2", "JOB_COMPLETION_INDEX": "1",
    "PODS_PER_JOB": "4", "JOBS": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}  # fmt: skip
SKYPILOT = {
    "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}  # fmt: skip
TORCHRUN = {
    "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "4096", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1",
}  # fmt: skip
PRTERUN = "prterun-head-7-21646@1"
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "PMIX_NAMESPACE": PRTERUN, "OMPI_VERSION": "5.0.7",
}  # fmt: skip
ON_ONE_HOST = {**OPEN_MPI_5, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
}  # fmt: skip
TPU = {"TPU_WORKER_HOSTNAMES": "w-0.run,w-1.run", "TPU_WORKER_ID": "1"}
TWO_SLICES = {
    **TPU, "MEGASCALE_COORDINATOR_ADDRESS": "s0-0.run:8080", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "process", "source"),
    [
        (THREE, ProcessInfo(2, 4, "10.0.0.1:8476"), "flags and CONVOY_*"),
        (KUBEFLOW, ProcessInfo(3, 4, "train-node-0-0.train:29500"), "Kubeflow"),
        (JAXJOB, ProcessInfo(1, 2, "job-worker-0:6666"), "Kubeflow"),
        (XPK_CPU, ProcessInfo(6, 8, "run-cpu-0-0.run:8476"), "JobSet"),  # an address without a port
        (XPK_GPU, ProcessInfo(1, 2, "run-gpu-0-0.run:6002"), "JobSet"),
        (JOBSET, ProcessInfo(9, 12, "run-workers-0-0.run:8476"), "JobSet"),  # replicas above 1
        (SKYPILOT, ProcessInfo(1, 2, "10.0.0.4:8476"), "SkyPilot"),
        (TORCHRUN, ProcessInfo(9, 16, "node0:29501", (1,)), "torchrun"),  # torchrun itself listens at 29500
        ({**TORCHRUN, "CUDA_VISIBLE_DEVICES": "1"}, ProcessInfo(9, 16, "node0:29501"), "torchrun"),
        ({**TORCHRUN, "JAX_LOCAL_DEVICE_IDS": "0,1"}, ProcessInfo(9, 16, "node0:29501"), "torchrun"),
        (SLURM, ProcessInfo(1, 2, f"localhost:{port('4096.0')}"), "Slurm"),
        ({**SLURM, "SLURM_TASKS_PER_NODE": "8(x2)"}, ProcessInfo(1, 2, f"localhost:{port('4096.0')}", (0,)), "Slurm"),
        (OPEN_MPI_5, ProcessInfo(1, 2, f"head-7:{port(PRTERUN)}"), "Open MPI"),
        (ON_ONE_HOST, ProcessInfo(1, 2, f"127.0.0.1:{port(PRTERUN)}", (0,)), "Open MPI"),
        (OPEN_MPI_4, ProcessInfo(0, 2, f"10.96.0.1:{port(OPEN_MPI_4['OMPI_MCA_orte_hnp_uri'])}"), "Open MPI"),
        (TPU, ProcessInfo(1, 2, "w-0.run:8476"), "TPU hosts"),
        (TWO_SLICES, ProcessInfo(3, 4, "s0-0.run:8476"), "TPU hosts"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, ProcessInfo(), "no scheduler found"),
        ({**JOBSET, **THREE}, ProcessInfo(2, 4, "10.0.0.1:8476"), "flags and CONVOY_*"),
        ({**TWO_SLICES, **JOBSET}, ProcessInfo(9, 12, "run-workers-0-0.run:8476"), "JobSet"),
        ({**SLURM, **SKYPILOT}, ProcessInfo(1, 2, "10.0.0.4:8476"), "SkyPilot"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, ProcessInfo(), "a shell in a Slurm allocation"),  # ssh to a node, sbatch
        ({}, ProcessInfo(), "no scheduler found"),
    ],
)  # fmt: skip
def test_detects_each_scheduler(environment, process, source):
    detection = detect({}, environment)
    assert (detection.process, detection.source) == (process, source)
    assert set(re.findall(r"\w{4,}", " ".join(detection.variables))) <= {*environment, "hosts"}


def test_coordinator_flag_combines_with_scheduler_variables():
    detection = detect({"coordinator": "10.1.1.1:99"}, OPEN_MPI_5)
    assert detection.process == ProcessInfo(1, 2, "10.1.1.1:99")
    assert detection.source == "Open MPI and flags and CONVOY_*"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-4,7]", "n1"), ("gpu[008-011],cpu2", "gpu008"), ("a1,a2", "a1"), ("r[5]", "r5")],
)
def test_first_host_of_a_slurm_node_list(nodes, first):
    assert first_host(nodes) == first


def test_detection_text_names_its_variables():
    assert str(detect({}, JAXJOB)) == (
        "processes: 1 of 2, coordinator job-worker-0:6666 (Kubeflow: NUM_PROCESSES, PROCESS_ID, COORDINATOR_ADDRESS)"
    )
    assert str(detect({}, {})) == "processes: one (no scheduler found)"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"},
            "Slurm has allocated 4 tasks, but this process was not started",
        ),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "1"}, "the number of pods is unknown"),
        ({**THREE, "https_proxy": "http://user:secret@p:1"}, "https_proxy is set, so gRPC would connect to 10.0.0.1"),
    ],
)
def test_likely_mistakes_are_warnings(environment, words):
    (note,) = detect({}, environment).notes
    assert words in note
    assert "secret" not in note


def test_host_in_no_proxy_has_no_warning():
    assert detect({}, {**THREE, "https_proxy": "http://p:1", "no_proxy": "localhost, 10.0.0.1"}).notes == ()
