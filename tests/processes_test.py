"""One run in several processes, by `convoy launch local`: equal numbers, one set of files, and a common end.

tests/faults/process_test.py and preemption_test.py stop, kill and fail runs of two processes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import measuring, runs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 20


def write(folder: Path, **settings) -> str:
    """Writes the stored config of a run; returns the argument `--config` for it."""
    folder.mkdir()
    RunDirectory(folder).write_config_text(to_text(runs.config(train__total=f"{STEPS} steps", **settings)))
    return f"--config={folder}"


def launch(*args: str, processes: int = 2, devices: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    words = ("launch", "local", f"--processes={processes}", f"--devices-per-process={devices}", "--", *args)
    return runs.convoy(*words, cwd=None, **env)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run of two processes with one device each, on a mesh with fsdp=2; also its argument `--config`."""
    top = tmp_path_factory.mktemp("pair")
    config = write(top / "config", mesh__fsdp=2)
    done = launch("train", config, f"--workdir={top / 'run'}", "--config.log.progress=none")
    assert done.returncode == 0, done.stderr
    return top / "run", config, done


def single(config: str, run: Path, devices: int) -> Path:
    done = runs.convoy("train", config, f"--workdir={run}", JAX_NUM_CPU_DEVICES=str(devices))
    assert done.returncode == 0, done.stderr
    return run


def test_two_processes_match_one_process_with_two_devices_bitwise(pair, tmp_path):
    run, config, _ = pair
    alone = single(config, tmp_path / "alone", 2)
    for name in ("loss", "accuracy", "grad_norm", "heldout/loss", "heldout/accuracy"):
        assert runs.rows(run, name) == runs.rows(alone, name), name
    assert sorted(runs.rows(run)) == list(range(1, STEPS + 1))


def test_two_processes_match_one_of_four_devices_and_start_fresh_together(tmp_path):
    """tests/faults/other_mesh_test.py compares four processes with one."""
    config = write(tmp_path / "config", mesh__data=2, mesh__fsdp=2)
    old = write(tmp_path / "run", train__seed=5).removeprefix("--config=")
    done = launch("train", config, f"--workdir={old}", "--fresh", devices=2)
    assert done.returncode == 0, done.stderr
    assert "train.seed: 5" in (tmp_path / "run.old-1/config.txt").read_text()
    losses, alone = runs.rows(tmp_path / "run"), runs.rows(single(config, tmp_path / "alone", 4))
    assert losses == pytest.approx(alone, rel=0, abs=1e-6)
    assert len(losses) == STEPS


MEASURE = """
import os
from engine.cluster import cluster_detection, processes
processes.initialize(cluster_detection.detect({}, os.environ).process)
from engine.loop import per_example
from tests import measuring
per_example.TOGETHER = 4  # so that the tags of examples need several messages
print(*measuring.results())
processes.leave()
"""


def test_several_processes_measure_what_one_measures():
    """Three, since two processes of the run above are compared with one by its evaluations."""
    lines = runs.lines_by_process(MEASURE, processes=3)
    results, file = measuring.results(devices=2)
    assert [lines[str(i)][-1].rstrip() for i in range(3)] == [f"{results} {file}", results, results]


def test_only_the_primary_writes_files(pair):
    run, _, done = pair
    assert {path.name for path in run.iterdir()} == {
        "status.json", "metrics.jsonl", "config.txt", "code.json", "data.json", "checkpoints", "lease", "log.txt",
        "goodput.jsonl",
    }  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    status = runs.status(run)
    assert (status["state"], status["step"], status["exit_code"]) == ("done", STEPS, 0)
    assert (run / "log.txt").read_text().count(f"saving checkpoint of step {STEPS}") == 1
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"15", "20", "results.json"}
    lines = runs.without_gloo(done.stdout + done.stderr)
    assert sorted(line.partition(",")[0] for line in lines) == [  # log.progress is "none"
        "[0] processes: 0 of 2",
        "[1] processes: 1 of 2",
    ]


def test_evaluation_by_several_processes_is_printed_once(pair):
    run, _, _ = pair
    done = launch("evaluate", str(run), "--step=latest")
    assert done.returncode == 0, done.stderr
    printed = runs.without_gloo(done.stdout)
    assert printed[0] == f"[0] step: {STEPS}"
    results = {name: float(value) for name, value in (line.removeprefix("[0] ").split(": ") for line in printed[1:])}
    assert results["heldout/loss"] == pytest.approx(runs.rows(run, "heldout/loss")[STEPS], abs=1e-5)
    assert len(printed) == 3


def test_divergence_ends_every_process_with_the_same_exit_code(tmp_path):
    config = write(tmp_path / "config", optimizer__learning_rate=1e30, optimizer__schedule="constant")
    words = ("train", config, f"--workdir={tmp_path / 'run'}")
    done = launch(*words, processes=2, devices=1, **runs.COMPILING)
    assert done.returncode == 43, done.stderr
    assert runs.status(tmp_path / "run")["exit_code"] == 43
    assert "with 43 (do not retry); then" in done.stderr
    assert done.stderr.splitlines()[-2].count(": 43") == 1, done.stderr
    assert "Diverged: step 2: the loss is not finite" in done.stderr.splitlines()[-1]


def test_broadcast_sends_the_primary_value_and_unshared_folder_is_an_error(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    program = f"""
import os, sys
from engine.cluster import cluster_detection, group, processes
from engine.run.directory import RunDirectory
processes.initialize(cluster_detection.detect().process)
me = group.index()
value = group.broadcast({{"text": "é" * 1500, "big": 2**40 + me, "me": me, "none": None}}, "a test")
assert value == {{"text": "é" * 1500, "big": 2**40, "me": 0, "none": None}}, value
assert group.broadcast([] if me == 0 else [1], "a test") == []
os.chdir(f"{tmp_path}/{{me}}")
try:
    RunDirectory.open("run")
except Exception as error:
    print(type(error).__name__, error)
processes.leave()
"""
    launcher = (
        f"import sys; from engine.launch.local import launch; launch([sys.executable, '-c', {program!r}], processes=2)"
    )
    done = runs.run([sys.executable, "-c", launcher])
    assert done.stderr == ""
    (line,) = runs.without_gloo(done.stdout)
    assert line.startswith("[1] RunError run: process 1 does not see this folder, which process 0 has opened.")


def test_user_error_is_printed_once(tmp_path):
    done = launch("train", "--config=configs.digits", "--config.train.totl=3")
    assert done.returncode == 1
    assert "] ConfigError: train.totl: unknown field" in done.stderr.splitlines()[-1]
    assert done.stderr.count("ConfigError") == 1
