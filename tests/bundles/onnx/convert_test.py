"""The environment of the converter: how it is found, and what it finds."""

import sys
from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.bundles.onnx import convert
from engine.config.instances import INSTANCE
from engine.config.schema import Target
from tests import runs
from tests.bundles.onnx.subjects import loaded


def test_without_an_environment_the_error_says_how_to_make_one(monkeypatch):
    monkeypatch.delenv(convert.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "jax2onnx").exists()])
    with pytest.raises(
        ConfigError, match="python3 -m venv onnx-env, and onnx-env/bin/pip install --no-deps -r"
    ) as error:
        convert.find_python()
    assert convert.LOCK.name in str(error.value) and "--onnx-python=onnx-env/bin/python" in str(error.value)


def test_a_flag_or_a_variable_names_the_interpreter(monkeypatch, tmp_path):
    monkeypatch.setenv(convert.PYTHON_VARIABLE, sys.executable)
    assert convert.find_python() == sys.executable
    with pytest.raises(ConfigError, match=f"--onnx-python={tmp_path}: is no interpreter of Python"):
        convert.find_python(str(tmp_path))
    monkeypatch.setenv(convert.PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(ConfigError, match="=/nowhere/python: is no interpreter"):
        convert.find_python()


def test_lock_has_the_converter_and_not_the_orbax_that_it_requires():
    names = {line.partition("==")[0] for line in convert.LOCK.read_text().splitlines() if "==" in line}
    assert {"jax2onnx", "onnxruntime", "jax", "flax", "grain", "safetensors", "xxhash"} <= names
    assert not names & {"orbax-checkpoint", "tensorstore", "netron"}


@pytest.mark.multiprocess
def test_an_interpreter_without_packages_is_refused(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'No module named jax' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"the converter to ONNX failed: No module named jax\. Make one"):
        convert.convert(loaded(), [], str(program))


def test_a_run_with_a_task_object_is_refused():
    config = runs.config(task=dict(target=INSTANCE, type="Task"))
    with pytest.raises(ConfigError, match=r"started with a Task object, .* Train it from a config that names the Task"):
        convert.convert(loaded(config=config), [], sys.executable)


def test_the_converter_sees_the_code_of_the_run_and_no_other_package(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    for name in ("perception_stack", "jax_of_the_run"):
        (installed / name).mkdir(parents=True)
        (installed / name / "__init__.py").write_text("")
    (tmp_path / "code").mkdir()
    monkeypatch.setattr(convert.site, "getsitepackages", lambda: [str(installed)])
    monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), str(installed), *sys.path])
    links = tmp_path / "links"
    links.mkdir()
    arguments = {"head": {"target": "engine.layers.Dense"}}
    task = Target(target="perception_stack.Task", arguments=arguments)
    path = convert._search_path("other/python", task, links)
    assert path[:2] == [str(links), str(tmp_path / "code")] and str(installed) not in path
    assert {link.name for link in links.iterdir()} == {"perception_stack"}
    assert str(installed) in convert._search_path(sys.executable, task, links)
