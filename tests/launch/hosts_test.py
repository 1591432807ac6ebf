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


def test_host_whose_name_is_a_loopback_address_is_reported_and_not_retried(tmp_path):
    """Debian's default. Collectives between CPUs would connect to 127.0.1.1, and every restart would fail again."""
    (tmp_path / "config").mkdir()
    RunDirectory(tmp_path / "config").write_config_text(to_text(runs.config(mesh__fsdp=2)))
    train = ("supervise", "--", "train", f"--config={tmp_path / 'config'}", f"--workdir={tmp_path / 'run'}")
    with two_hosts(own_addresses=("10.77.0.1", "127.0.1.1")) as hosts:
        processes = [hosts.start(i, *train) for i in range(2)]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    for output in outputs:
        assert "UnreachableHost: process 1 on host-b (pid " in output
        assert " resolves the name of its host to 127.0.1.1, which other hosts cannot reach. " in output
        assert " in place of the existing line: `10.77.0.2 host-b` on host-b. Then start all of them again." in output
        assert "Traceback" not in output
