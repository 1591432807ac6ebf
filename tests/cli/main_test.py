"""The command line in real processes: output, exit codes, and error messages instead of tracebacks."""

import os
import subprocess
import sys
import threading

import pytest

from engine.cli.main import main
from engine.run.goodput import Stopwatch
from engine.storage import background
from tests import runs

DIGITS = "--config=configs.digits"
QUICK = (DIGITS, "--config.train.total=3 steps", "--config.checkpoint.every=2 steps", "--config.log.every=1 step")


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


def test_help_imports_neither_jax_nor_the_engine_of_a_verb():
    words = [sys.executable, "-X", "importtime", "-m", "engine.cli.main", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, env=runs.environment(), timeout=180)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "engine.cli.verbs" in modules
    assert not modules & {"jax", "flax", "numpy", "engine.api", "engine.planning", "engine.datasets"}
    assert not modules & {"rich", "yaml", "ctypes", "engine.config.schema", "engine.cluster.parent"}


def test_function_returns_while_a_thread_waits_for_storage(capsys):
    answer = threading.Event()
    call = background.Background(answer.wait, "waits")
    try:
        assert main(["--help"]) == 0
    finally:
        answer.set()
        assert call.result(10)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train"], 1, "convoy train: one of the arguments --config --cooldown is required"),
        (["trian"], 1, "trian: unknown command. Did you mean train?"),
        (["train", DIGITS, "--fresch"], 1, "--fresch: unknown argument of convoy train. Did you mean --fresh?"),
        (["train", DIGITS, "--config.train.totl=3"], 1, "ConfigError: train.totl: unknown field"),
        (["train", DIGITS, "--config.train.total"], 1, "--config.train.total: no value"),
        (["train", "--config=configs.digit"], 1, "Did you mean configs.digits"),
        (["train", DIGITS, "--config.task.widht=3"], 1, "Did you mean width?"),
        (["train", DIGITS, "--config.mesh.fsdp=3"], 1, "ShardingError: mesh: data=-1 x fsdp=3"),
        (["train", DIGITS, "--config.checkpoint.best=heldout/acuracy"], 1, "Did you mean heldout/accuracy?"),
        (["train", DIGITS, "--config.train.accumulate=3"], 1, "train.accumulate"),
        (["train", DIGITS, "--process-id=1"], 1, "found --process-id=1, but not --coordinator or CONVOY_COORDINATOR"),
        (["train", DIGITS, "--", "x"], 1, "--: unknown argument of convoy train"),
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


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--help",
        "--version",
        "train --help",
        "config configs.digits",
        "goodput RUN",
        "launch --help",
        "launch tpu-vm stop --name=a --zone=b",
        "launch k8s --name=a --image=b:1 --claim=c -- train --config=configs.digits",
        "launch slurm --nodes=1 --time=1:00:00 --dry-run -- train --config=configs.digits",
    ],
)
def test_result_that_cannot_be_written_is_an_error(tmp_path, words):
    Stopwatch(tmp_path / "goodput.jsonl", 1).close()
    command = runs.command(*words.replace("RUN", str(tmp_path)).split())
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=runs.environment(), timeout=180
        )
    assert done.returncode == 1
    text = "OutputError: standard output: cannot be written (No space left on device). The output is lost.\n"
    assert done.stderr == text


def test_exception_in_user_code_is_one_sentence_with_its_line_and_the_file_of_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from engine import Task\nfrom convoy_zoo.models.digits import Digits\n\n"
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
        "import jax.numpy as jnp\nfrom engine import Loss\nfrom convoy_zoo.models.digits import Digits\n\n"
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
