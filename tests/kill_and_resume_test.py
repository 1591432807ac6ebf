"""A run that is killed or stopped, and started again, is bitwise equal to an uninterrupted run."""

import json
import signal
from pathlib import Path

import pytest

from engine.cli.main import main
from tests import runs
from tests.models.pedestrians import recordings

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


@pytest.mark.parametrize("k", [1, 8])
def test_resume_after_sigkill_is_bitwise_equal(unbroken, tmp_path, k):
    args = (*ARGS, f"--workdir={tmp_path / 'run'}", f"--config.train.steps_per_dispatch={k}")
    for wanted in (1, 3):  # killed twice, at an arbitrary moment
        process = runs.start(*args)
        runs.wait_for(lambda wanted=wanted: steps_of(tmp_path) > 40 * wanted, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert runs.status(tmp_path / "run")["exit_code"] is None
    assert runs.convoy(*args).returncode == 0
    assert runs.status(tmp_path / "run")["attempt"] == 3
    assert_same_run(tmp_path / "run", unbroken)


def steps_of(tmp_path: Path) -> int:
    file = tmp_path / "run/metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 42, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_stopped_run_saves_and_prints_how_to_resume(unbroken, tmp_path, number, code, state):
    args = (*ARGS, f"--workdir={tmp_path / 'run'}", "--config.checkpoint.every=None")
    process = runs.start(*args)
    runs.wait_for(lambda: steps_of(tmp_path) > 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == code, output
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == (state, code)
    assert 3 < status["step"] < 240
    assert f"is saved in {tmp_path / 'run'}" in output
    assert f"resume from {status['step']}" in output
    assert "Traceback" not in output
    assert str(status["step"]) in runs.saved_steps(tmp_path / "run")
    assert runs.convoy(*args).returncode == 0
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("config", ["gan", "mean_teacher", "forecast_eth_ucy"])
def test_models_of_the_zoo_resume_after_sigkill_with_the_same_state_and_results(config, tmp_path):
    args = (
        "train", f"--config=configs.{config}", "--config.train.total=40 steps", "--config.checkpoint.every=10 steps",
        "--config.log.every=1 step", "--config.log.tensorboard=False",
        *(pedestrian_args(tmp_path) if config == "forecast_eth_ucy" else ()),
    )  # fmt: skip
    assert runs.convoy(*args, f"--workdir={tmp_path / 'unbroken'}", cwd=None, **runs.COMPILING).returncode == 0
    process = runs.start(*args, f"--workdir={tmp_path / 'run'}", cwd=None, **runs.COMPILING)
    runs.wait_for(lambda: steps_of(tmp_path) > 20, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert runs.convoy(*args, f"--workdir={tmp_path / 'run'}", cwd=None, **runs.COMPILING).returncode == 0
    assert runs.status(tmp_path / "run")["attempt"] == 2
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "unbroken")
    found = [
        (json.loads((run / "checkpoints/40/manifest.json").read_text())["arrays"], evaluations(run))
        for run in (tmp_path / "run", tmp_path / "unbroken")
    ]
    assert found[0] == found[1]
    digests, results = found[0]
    assert len(digests) > 10
    if config == "forecast_eth_ucy":
        assert {"validation/best/min_ade", "test/top/min_fde"} <= results[40].keys()


def pedestrian_args(tmp_path: Path) -> list[str]:
    """Writes recordings in the layout of ETH/UCY, and returns the arguments of a tiny model on them."""
    folder = recordings.write(tmp_path / "data", walkers=3, frames=22)
    sections = ["data", *(f"evaluations.{name}.data" for name in ("validation", "test", "test_social_gan"))]
    return [
        *(f"--config.{section}.folder={folder}" for section in sections),
        "--config.evaluations.validation.every=20 steps",
        *(f"--config.task.{field}" for field in ("modes=3", "width=8", "heads=2", "temporal=1")),
    ]


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """Returns step -> results of all evaluations of a run; the last attempt of a step is valid."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        results = {name: value for name, value in line.items() if name.startswith(("validation/", "test"))}
        found.setdefault(line["step"], {}).update(results)
    return found
