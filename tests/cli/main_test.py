"""The command line in real processes: output, exit codes, and error messages instead of tracebacks."""

import json
import os
import subprocess
import sys
import threading

import pytest

from engine.cli.main import main
from engine.observe.writer import MEASURED, ROW_KEYS
from engine.storage import background
from engine.training.step import ENGINE_METRICS
from tests import runs

DIGITS = "--config=configs.digits"
QUICK = (DIGITS, "--config.train.total=3 steps", "--config.checkpoint.every=2 steps", "--config.log.every=1 step")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A short run of the real digits."""
    path = tmp_path_factory.mktemp("main") / "run"
    done = runs.convoy("train", *QUICK, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    return path, done


def cpu_seconds() -> float:
    """CPU time of the child processes so far, which does not depend on the load of the machine."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_is_fast_and_lists_every_verb():
    begin = cpu_seconds()
    done = runs.convoy("--help")
    assert cpu_seconds() - begin < 0.3
    assert done.returncode == 0
    for verb in ("train", "evaluate", "config", "explain", "checkpoints", "data", "launch", "supervise", "goodput"):
        assert f"convoy {verb}" in done.stdout or f"    {verb} " in done.stdout
    assert runs.convoy().stdout == done.stdout


def test_function_returns_while_a_thread_waits_for_storage(capsys):
    answer = threading.Event()
    call = background.Background(answer.wait, "waits")
    try:
        assert main(["--help"]) == 0
    finally:
        answer.set()
        assert call.result(10)


def test_train_writes_its_files_and_prints_where(digits):
    path, done = digits
    assert {p.name for p in path.iterdir()} == {
        "status.json", "metrics.jsonl", "config.txt", "checkpoints", "tensorboard", "log.txt", "goodput.jsonl",
        "code.json", "data.json", "lease",
    }  # fmt: skip
    assert list((path / "tensorboard").iterdir())
    status = runs.status(path)
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 3, 0)
    assert 0 <= status["metrics"]["heldout/accuracy"] <= 1
    assert sorted(runs.rows(path)) == [1, 2, 3]
    for words in ("digits: done at step 3 of 3", str(path), "convoy evaluate", "heldout/accuracy"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "\r" not in done.stderr


def test_evaluate_checkpoints_and_export_read_a_run(digits, tmp_path):
    path, _ = digits
    done = runs.convoy("evaluate", str(path))
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines["step"] == "3"
    assert float(lines["heldout/accuracy"]) == pytest.approx(runs.status(path)["metrics"]["heldout/accuracy"], abs=1e-6)
    assert runs.convoy("evaluate", str(path), "--step=2").stdout.startswith("step: 2\n")
    listed = runs.convoy("checkpoints", str(path)).stdout.splitlines()
    assert [line.split()[1] for line in listed if line.startswith("step")] == ["2", "3"]
    assert "heldout/accuracy" in listed[-2]
    assert listed[-1].startswith("code: ")
    verified = runs.convoy("checkpoints", "verify", str(path))
    assert verified.returncode == 0 and [line.split()[2] for line in verified.stdout.splitlines()] == ["good"] * 2
    assert runs.convoy("checkpoints", "verify", str(tmp_path)).returncode == 1
    out = tmp_path / "weights.safetensors"
    assert runs.convoy("checkpoints", str(path), f"--export={out}", "--step=2").returncode == 0
    assert out.stat().st_size > 4 * 26_122


def test_config_prints_what_a_run_stores(digits):
    path, _ = digits
    done = runs.convoy("config", str(path))
    assert done.stdout == (path / "config.txt").read_text()
    assert "train.total: 3 steps" in done.stdout.splitlines()
    changed = runs.convoy("config", "configs.digits", "--config.train.ema_decay=0.9", "--config.checkpoint.best=None")
    lines = changed.stdout.splitlines()
    assert "train.ema_decay: 0.9" in lines
    assert "checkpoint.best: None" in lines
    assert "train.global_batch_size" in runs.convoy("config", "--help").stdout


def test_explain_prints_mesh_and_parameters():
    done = runs.convoy("explain", DIGITS, "--config.mesh.fsdp=-1", JAX_NUM_CPU_DEVICES="4")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "mesh: fsdp=4 (4 x cpu), from the config"
    assert "hidden/1/kernel f32[128,128] - P('fsdp', None) 16.0 KiB/device" in lines
    assert any(line.startswith("all-gather fsdp 4 devices") for line in lines)
    flops = 2 * 64 * (2 * 64 * 128 + 3 * 128 * 128 + 3 * 128 * 10)  # no gradient of the images
    assert f"FLOPs of a step, on all devices: {flops:.3e} of the model" in done.stdout


def test_explain_needs_no_devices():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}

    def explain(*args):
        words = runs.command("explain", DIGITS, "--config.mesh.tensor=2", "--no-collectives", *args)
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = explain("--config.mesh.fsdp=8", "--config.mesh.data=4", "--config.train.precision=bfloat16")
    assert "train.precision=bfloat16 rounds the input image, also in evaluations" in text
    assert text.startswith("mesh: data=4 x fsdp=8 x tensor=2 (64 x cpu), from the config\n")
    assert "warning: mesh.tensor = 2 splits no parameter" in text and "collectives" not in text
    text = explain("--config.mesh.fsdp=-1", "--devices=16")
    assert text.startswith("mesh: fsdp=8 x tensor=2 (16 x cpu), from the config\n")


def test_fast_dev_run_runs_two_steps_and_leaves_no_files(tmp_path):
    done = runs.convoy("train", DIGITS, "--fast-dev-run", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("step 2/2", "saving checkpoint of step 1", "heldout/accuracy", "done at step 2 of 2", "not kept"):
        assert words in done.stderr
    assert str(tmp_path) not in done.stderr.partition("done at step 2")[2]
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_with_workdir_keeps_its_files(tmp_path):
    done = runs.convoy("train", DIGITS, "--fast-dev-run", "--workdir=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "here/checkpoints" in done.stderr and (tmp_path / "here" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train"], 1, "convoy train: the following arguments are required: --config"),
        (["trian"], 1, "trian: no such verb. Did you mean train?"),
        (["train", DIGITS, "--fresch"], 1, "--fresch: unknown argument of convoy train. Did you mean --fresh?"),
        (["train", DIGITS, "--config.train.totl=3"], 1, "ConfigError: train.totl: unknown field"),
        (["train", DIGITS, "--config.train.total"], 1, "--config.train.total: no value"),
        (["train", "--config=configs.digit"], 1, "Did you mean configs.digits"),
        (["train", DIGITS, "--config.task.widht=3"], 1, "Did you mean width?"),
        (["train", DIGITS, "--config.mesh.fsdp=3"], 1, "ShardingError: mesh: data=-1 x fsdp=3"),
        (["train", DIGITS, "--config.checkpoint.best=heldout/acuracy"], 1, "Did you mean heldout/accuracy?"),
        (["train", DIGITS, "--config.train.accumulate=3"], 1, "train.accumulate"),
        (["evaluate", "nowhere"], 1, "RunError: nowhere: is not a run"),
        (["goodput", "nowhere", "--config.train.seed=1"], 1, "takes no overrides"),
        (["train", DIGITS, "--process-id=1"], 1, "found --process-id=1, but not --coordinator or CONVOY_COORDINATOR"),
        (["train", DIGITS, "--", "x"], 1, "--: unknown argument of convoy train"),
        (["launch", "local", "--processes=2"], 1, "convoy launch local: found nothing after --. Write a verb"),
        (["supervise"], 1, "convoy supervise: found nothing after --. Write train: convoy supervise ... -- train ..."),
        (["supervise", "--", "evaluate", "runs/x"], 1, "convoy supervise: found evaluate after --. Write train"),
        (["supervise", "--restarts=-1", "--", "train"], 1, "--restarts = -1: allowed is a whole number from 0"),
        (["supervise", "--", "train", DIGITS, "--fast-dev-run"], 1, "--fast-dev-run: cannot be combined with"),
        (["supervise", "--", "train", "--config=configs.digit"], 1, "Did you mean configs.digits"),
        (["supervise", "--", "train", DIGITS, "--config.train.totl=3"], 1, "ConfigError: train.totl: unknown field"),
        (["launch", "local", "--processes=2", "--", "launch"], 1, "launch local: found launch after --. Write a verb"),
        (["launch", "local", "--processes=0", "--", "train"], 1, "--processes = 0: allowed is a whole number from 1"),
        (["launch", "local", "--processes=2", "--config.train.seed=1", "--", "train"], 1, "Write it after --"),
        (["launch", "slurm", "--nodes=2", "--time=60", "--dry-run"], 1, "convoy launch slurm: found nothing after --."),
        (
            ["launch", "slurm", "--nodes=2", "--time=60", "--", "train", DIGITS, "--config.train.totl=1"],
            1,
            "train.totl: ",
        ),
        (["launch", "k8s", "--config.train.seed=1", "--", "train"], 1, "the following arguments are required: --name"),
    ],
)
def test_user_error_is_one_sentence_with_exit_code_1(tmp_path, args, code, words):
    done = runs.convoy(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_field_is_reported_in_under_a_second():
    begin = cpu_seconds()
    assert runs.convoy("train", DIGITS, "--config.trian.total=3").returncode == 1
    assert cpu_seconds() - begin < 1


def test_closed_output_pipe_is_not_an_error():
    shell = " ".join(runs.command("config", "configs.digits")) + " | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=runs.environment(), timeout=180)
    assert done.stdout == "name: digits\n"
    assert done.stderr == ""


def test_exception_in_user_code_is_one_sentence_with_its_line_and_the_file_of_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from engine import Task\nfrom models.digits import Digits\n\n"
        "class Mine(Digits):\n    def loss(self, model, batch, rng):\n        raise TypeError('the loss')\n"
    )
    done = runs.convoy("train", *QUICK, "--config.task.target=mine.Mine", "--workdir=run", cwd=tmp_path)
    assert done.returncode == 1
    sentence = "TypeError: the loss (mine.py:6 in loss)."
    where = " The traceback is in run/log.txt; CONVOY_TRACEBACK=1 prints it."
    assert done.stderr.splitlines()[-1] == sentence + where and "Traceback" not in done.stderr
    assert runs.status(tmp_path / "run")["reason"] == sentence
    assert 'mine.py", line 6, in loss' in (tmp_path / "run/log.txt").read_text()


def test_out_of_memory_of_activations_is_one_sentence(tmp_path):
    (tmp_path / "huge.py").write_text(
        "import jax.numpy as jnp\nfrom engine import Loss\nfrom models.digits import Digits\n\n"
        "class Huge(Digits):\n    def loss(self, model, batch, rng):\n        pixel = batch['image'][0, 0, 0]\n"
        "        values = pixel + jnp.arange(1 << 25)\n"
        "        activations = jnp.sort(jnp.outer(values, values))\n"
        "        loss = super().loss(model, batch, rng)\n"
        "        return Loss(loss.total + activations[0, 0], loss.weight, loss.metrics)\n"
    )
    done = runs.convoy("train", *QUICK, "--config.task.target=huge.Huge", "--workdir=run", cwd=tmp_path)
    assert done.returncode == 1
    assert "a device is out of memory (Out of memory allocating 45035996" in done.stderr
    assert "Traceback" not in done.stderr
    assert runs.status(tmp_path / "run")["reason"].startswith("a device is out of memory")


def test_removed_current_directory_and_links_to_themselves_are_one_sentence(tmp_path):
    program = (
        "import os, sys; from engine.cli.main import main; os.mkdir('d'); os.chdir('d'); os.rmdir('../d'); "
        "main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=runs.environment(),
        timeout=180,
    )
    assert done.stderr.startswith(
        "ConfigError: the current directory cannot be used (No such file or directory). Go to"
    )
    (tmp_path / "loop").symlink_to("loop")
    done = runs.convoy("train", *QUICK, "--workdir=loop/run", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("RunError: loop/run: cannot be written (Too many levels of symbolic links).")


def test_data_write_converts_a_dataset(tmp_path):
    done = runs.convoy("data", "write", DIGITS, "--out=digits.array_record", "--config.data.limit=40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote 40 examples" in done.stdout
    done = runs.convoy(
        "train", *QUICK, "--config.data.target=engine.readers.array_record.ArrayRecordSource", "--config.data.split=x",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "data.split: engine.readers.array_record.ArrayRecordSource takes no such argument" in done.stderr


def test_metrics_file_has_one_json_line_per_row(digits):
    lines = [json.loads(line) for line in (digits[0] / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "attempt", "time"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "heldout/loss" in line] == [3]
    own = {*ROW_KEYS, *MEASURED, *ENGINE_METRICS, "loss"}  # a Task's metric cannot have one of these names
    assert {name for line in lines for name in line if "/" not in name} - own == {"accuracy"}
