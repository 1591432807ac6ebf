"""A short run of the real digits, which the tests of several verbs read."""

import subprocess
from pathlib import Path

import pytest

from tests import runs

QUICK = (
    *("--config=configs.digits", "--config.train.total=3 steps", "--config.checkpoint.every=2 steps"),
    "--config.log.every=1 step",
)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Returns the run directory, and the process that trained."""
    path = tmp_path_factory.mktemp("digits") / "run"
    done = runs.convoy("train", *QUICK, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    return path, done
