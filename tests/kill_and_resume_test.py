"""A run that is killed or stopped, and started again, is bitwise equal to an uninterrupted run."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.cli.main import main
from tests import runs

ARGS = (
    "train", "--config=configs.digits", "--config.train.total=240 steps", "--config.checkpoint.every=10 steps",
    "--config.log.every=1 step", "--config.evaluations.heldout.every=90 steps", "--config.log.tensorboard=False",
    "--config.train.ema_decay=0.9",
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken") / "run"
    done = runs.convoy(*ARGS, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    export(path)
    return path


def export(run: Path) -> Path:
    """Writes the weights of the last step into the run, in this process, which has imported JAX; returns the file."""
    assert main(["export", str(run), f"--out={run / 'last.safetensors'}", "--step=latest"]) == 0
    return run / "last.safetensors"


def assert_same_run(run: Path, unbroken: Path) -> None:
    """Checks that losses of all steps, results and final weights are bitwise equal."""
    assert runs.rows(run) == runs.rows(unbroken)
    assert runs.rows(run, "heldout/loss") == runs.rows(unbroken, "heldout/loss")
    assert export(run).read_bytes() == (unbroken / "last.safetensors").read_bytes()


def test_resume_after_sigint_sigterm_and_sigkill_is_bitwise_equal(unbroken, tmp_path):
    """One after the other; the attempt that is killed, at an arbitrary moment, has eight steps per dispatch."""
    run = tmp_path / "run"
    args = (*ARGS, f"--workdir={run}")
    stop(run, args, signal.SIGINT, 130, "interrupted")
    stop(run, args, signal.SIGTERM, 42, "preempted")
    process, before = runs.start(*args, "--config.train.steps_per_dispatch=8"), last_step(run)
    runs.wait_for(lambda: last_step(run) > before + 24, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert runs.status(run)["exit_code"] is None
    assert runs.convoy(*args).returncode == 0
    assert runs.status(run)["attempt"] == 4
    assert_same_run(run, unbroken)


def last_step(run: Path) -> int:
    """Returns the last step of the newest attempt that has written one."""
    return max(runs.rows(run), default=0) if (run / "metrics.jsonl").exists() else 0


def stop(run: Path, args: Sequence[str], number: int, code: int, state: str) -> None:
    """Resumes a run and sends it a signal; it saves its state and prints how to resume."""
    process, before = runs.start(*args, "--config.checkpoint.every=None"), last_step(run)
    runs.wait_for(lambda: last_step(run) > before + 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == code, output
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == (state, code)
    assert before + 3 < status["step"] < 240
    assert f"is saved in {run}" in output
    assert f"resume from {status['step']}" in output
    assert "Traceback" not in output
    assert str(status["step"]) in runs.saved_steps(run)
