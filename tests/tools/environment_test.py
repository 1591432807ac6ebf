"""What every test may rely on, under Bazel as under plain pytest."""

import pathlib
import subprocess
import sys

import jax
import pytest


def test_there_are_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


def test_a_child_process_has_the_same_devices_and_packages(tmp_path):
    program = "import jax, conftest; print(len(jax.devices()))"
    child = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert child.stdout == "8\n"


def test_the_settings_of_pyproject_apply(pytestconfig):
    assert any(marker.startswith("multiprocess:") for marker in pytestconfig.getini("markers"))


def test_a_warning_is_an_error():
    import warnings

    with pytest.raises(UserWarning, match="told"):
        warnings.warn("told", stacklevel=1)


def test_the_home_folder_can_be_written(tmp_path):
    home = pathlib.Path.home()
    assert home.is_dir()
