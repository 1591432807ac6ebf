import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from engine.base.errors import ConfigError
from engine.scaffold.kinds import KINDS
from engine.scaffold.project import project_files, project_name, write_project
from tests import runs
from tests.levels import TOP

FILES = [".gitignore", "README.md", "config.py", "data.py", "model.py", "test_model.py"]
MODULES = ("config", "data", "model", "test_model")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_files_are_complete_and_short(kind):
    files = project_files(kind, "mine")
    assert files.keys() >= set(FILES)
    for name, text in files.items():
        assert "@" not in text.replace("@dataclasses", "").replace("@functools", ""), name
        assert max(map(len, text.splitlines())) <= 120, name
        if name.endswith(".py"):
            compile(text, name, "exec")
    assert 'c.name = "mine"' in files["config.py"] and kind.metric in files["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "scenes", "text"])
def test_project_passes_its_own_test(kind, tmp_path, monkeypatch):
    """As pytest runs it, but in this process."""
    write_project(tmp_path / "mine", kind)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    try:
        tests = importlib.import_module("test_model")
        assert Path(tests.__file__ or "").parent == tmp_path / "mine"
        tests.test_examples_can_be_read_and_are_finite()
        tests.test_two_steps_train_save_and_evaluate(tmp_path)
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.mark.slow
def test_project_trains_by_the_commands_of_its_readme(tmp_path):
    write_project(tmp_path / "mine", "table")
    short = ["--config.train.total=20 steps", "--config.evaluations.val.every=10 steps", "--config.log.every=10 steps"]
    done = runs.convoy("train", "--config=config.py", *short, cwd=tmp_path / "mine", **runs.COMPILING)
    assert done.returncode == 0, done.stderr
    assert "step 20: val/error_m " in done.stderr
    plotted = runs.convoy("plot", "runs/mine", cwd=tmp_path / "mine")
    assert plotted.returncode == 0 and plotted.stdout.startswith("loss\n"), plotted.stderr
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "examples"]
    tested = subprocess.run(
        words, cwd=tmp_path / "mine", env=runs.environment(PYTHONPATH=str(TOP)), capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout


def test_nothing_is_overwritten_or_half_written(tmp_path):
    (tmp_path / "model.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"model.py already exists, and convoy init overwrites nothing. Choose anoth"):
        write_project(tmp_path, "table")
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]
    with pytest.raises(ConfigError, match=r"model\.py/a: cannot be written"):
        write_project(tmp_path / "model.py" / "a", "table")


def test_name_of_a_project_is_one_of_a_run():
    assert [project_name(Path(name)) for name in ("my-net", "über net!", "x_1", "...")] == [
        "my-net", "ber-net", "x_1", "project",
    ]  # fmt: skip
