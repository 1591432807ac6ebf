"""The settings and packages that every test has, under Bazel and under plain pytest."""

import pathlib
import subprocess
import sys

import jax
import pytest


def test_jax_has_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


def test_child_process_has_the_same_devices_and_packages(tmp_path):
    program = "import jax, conftest; print(len(jax.devices()))"
    child = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert child.stdout == "8\n"


def test_settings_of_pyproject_apply(pytestconfig):
    assert any(marker.startswith("multiprocess:") for marker in pytestconfig.getini("markers"))


def test_warning_is_an_error():
    import warnings

    with pytest.raises(UserWarning, match="text"):
        warnings.warn("text", stacklevel=1)


def test_home_folder_exists():
    home = pathlib.Path.home()
    assert home.is_dir()
