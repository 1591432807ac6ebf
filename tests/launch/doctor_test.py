"""Output of `convoy doctor` in a single process and in several."""

import socket

import pytest

from tests import runs

pytestmark = pytest.mark.multiprocess


def test_doctor_reports_the_environment_without_values_of_variables():
    done = runs.convoy("doctor", JAX_NUM_CPU_DEVICES="2", XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "processes: one (no scheduler found)"
    words = {line.partition(":")[0]: line.partition(": ")[2] for line in others}
    assert "jax " in words["packages"] and "grain " in words["packages"]
    assert "cores for this process" in words["host"]
    assert "XLA_FLAGS" in words["variables set"] and "fast_math" not in done.stdout
    assert words["devices"] == "2 local, 2 in total: cpu (cpu)"
    assert words["collective"].startswith("2 devices, ")


def test_doctor_reports_every_process():
    done = runs.convoy("launch", "local", "--processes=2", "--devices-per-process=1", "--", "doctor")
    assert done.returncode == 0, done.stderr
    for i in range(2):
        assert f"[{i}] processes: {i} of 2, coordinator 127.0.0.1:" in done.stdout
        assert f"[{i}] devices: 1 local, 2 in total: cpu (cpu)" in done.stdout
        assert f"[{i}] process {i}: all 2 processes answer" in done.stdout


def test_doctor_reports_a_missing_process_within_the_timeout():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = runs.convoy("doctor", "--timeout=3", f"--coordinator={address}", "--num-processes=2", "--process-id=0")
    assert done.returncode == 42
    assert f"process 1 of 2 did not reach {address} within 3 s" in done.stderr
    assert f"processes: 0 of 2, coordinator {address}" in done.stdout


def test_doctor_warns_in_a_slurm_allocation_without_srun():
    done = runs.convoy("doctor", SLURM_JOB_ID="7", SLURM_NTASKS="4")
    assert done.returncode == 0, done.stderr
    assert "warning: Slurm has allocated 4 tasks, but this process was not started by srun and is alone." in done.stdout
