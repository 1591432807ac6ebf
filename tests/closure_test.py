"""A training run on arrays imports a small part of the engine, and no extension."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import runs
from tests.levels import TOP, groups

MOST = 150  # files of the engine that a plain run imports, without the files __init__.py; lower it, never raise it

TASK = '''\
"""A line through 16 points."""

import engine
import numpy as np
from flax import nnx


class Fit(engine.Task):
    """Predicts `y` from `x`."""

    def build(self, rngs):
        return nnx.Linear(3, 1, rngs=rngs)

    def loss(self, model, batch, rng):
        return engine.Loss.of((model(batch["x"]) - batch["y"]) ** 2)


def points():
    x = np.arange(48, dtype=np.float32).reshape(16, 3) / 48
    return engine.ArraySource({"x": x, "y": x[:, :1]})
'''

CONFIG = """\
from engine.config import defaults


def get_config():
    c = defaults()
    c.task = dict(target="plain_task.Fit")
    c.data = dict(target="plain_task.points")
    c.train.total = "4 steps"
    c.train.global_batch_size = 4
    return c
"""

PROGRAM = """\
import json, sys
from engine.cli.main import main

code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "engine"}, file)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, str]:
    """The modules of the engine, with their files, that a run has imported at its end."""
    folder: Path = tmp_path_factory.mktemp("plain")
    (folder / "plain_task.py").write_text(TASK)
    (folder / "plain.py").write_text(CONFIG)
    words = [sys.executable, "-c", PROGRAM, "modules.json"]
    words += ["train", "--config=plain.py", "--workdir=run", "--config.log.progress=none"]
    environment = runs.environment(PYTHONPATH=str(TOP))
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert runs.status(folder / "run")["state"] == "done"
    return json.loads((folder / "modules.json").read_text())


def test_plain_run_imports_no_extension(imported):
    extensions = {package for level in groups()["extensions"] for package in level}
    assert {"readers", "planning"} <= extensions
    assert [name for name in imported if extensions & set(name.split(".")[1:2])] == []


def test_plain_run_imports_few_files_of_the_engine(imported):
    files = sorted(name for name, file in imported.items() if Path(file).name != "__init__.py")
    assert "engine.loop.trainer" in files
    assert len(files) <= MOST, f"{len(files)} files: import what a plain run does not use where it is used: {files}"
