"""Two hosts train one run. JAX's CPU collectives find their peers by the name that each host has for itself."""

import pytest

from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs
from tests.two_hosts import two_hosts

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_two_hosts_train_identically_to_one_host_with_two_devices(tmp_path):
    (tmp_path / "config").mkdir()
    RunDirectory(tmp_path / "config").write_config_text(to_text(runs.config(mesh__fsdp=2)))
    train = ("train", f"--config={tmp_path / 'config'}")
    with two_hosts() as hosts:
        processes = [hosts.start(i, *train, f"--workdir={tmp_path / 'run'}") for i in range(2)]
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    alone = runs.convoy(*train, f"--workdir={tmp_path / 'alone'}", JAX_NUM_CPU_DEVICES="2")
    assert alone.returncode == 0, alone.stderr
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "alone")
