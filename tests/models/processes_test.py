"""A tiny language model on Python's library: two processes train it as one does. tests/processes_test.py has four."""

import pytest

from engine.config import load
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 20


def train(folder, processes: int, devices: int) -> dict[int, float]:
    """Trains on two devices with these numbers of processes and of devices per process; returns step -> loss."""
    tiny = load("configs.lm_stdlib").tiny
    settings = {**tiny, "train.total": f"{STEPS} steps", "log.every": "1 step", "cache.compiled": False}
    # The losses of its steps are compared: evaluations would be further programs to compile in each process.
    kept = {name: value for name, value in settings.items() if not name.startswith("evaluations.")}
    words = ["evaluations={}", "hooks={}", "checkpoint.best=None", "mesh.fsdp=2"]
    config = load("configs.lm_stdlib", [f"{name}={value}" for name, value in kept.items()] + words)
    (folder / "config").mkdir(parents=True)
    RunDirectory(folder / "config").write_config_text(to_text(config))
    args = ["train", f"--config={folder / 'config'}", f"--workdir={folder / 'run'}"]
    if processes > 1:
        args = ["launch", "local", f"--processes={processes}", f"--devices-per-process={devices}", "--", *args]
    done = runs.convoy(*args, cwd=None, JAX_NUM_CPU_DEVICES=str(devices))
    assert done.returncode == 0, done.stdout + done.stderr
    return runs.rows(folder / "run")


def test_two_processes_are_bitwise_equal_to_one_with_two_devices(tmp_path):
    losses = train(tmp_path / "two", 2, 1)
    assert losses == train(tmp_path / "one", 1, 2)
    assert len(losses) == STEPS and losses[STEPS] < losses[1]
