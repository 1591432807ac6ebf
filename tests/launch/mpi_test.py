"""A run under mpirun, without flags or variables of convoy."""

import os
import shutil
import subprocess
import tempfile

import pytest

from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.mark.skipif(shutil.which("mpirun") is None and "CI" not in os.environ, reason="no mpirun: openmpi-bin")
def test_mpirun_with_two_processes_matches_one_process_with_two_devices(tmp_path):
    (tmp_path / "config").mkdir()
    RunDirectory(tmp_path / "config").write_config_text(to_text(runs.config(mesh__fsdp=2)))
    train = ("train", f"--config={tmp_path / 'config'}")
    words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", *runs.command(*train)]
    # mpirun names its session folder by process id, which repeats in a sandbox: a separate folder avoids a clash. The
    # path must be short, since the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="mpi-", dir="/tmp") as session:
        done = subprocess.run(
            [*words, f"--workdir={tmp_path / 'run'}"],
            capture_output=True, text=True, env=runs.environment(TMPDIR=session), timeout=180,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for i in range(2):
        assert f"processes: {i} of 2, coordinator 127.0.0.1:" in done.stderr
    alone = runs.convoy(*train, f"--workdir={tmp_path / 'alone'}", JAX_NUM_CPU_DEVICES="2")
    assert alone.returncode == 0, alone.stderr
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "alone")
