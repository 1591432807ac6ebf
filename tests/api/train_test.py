"""Train, evaluate and export as functions: run directories, checks of arguments, and side effects on the process."""

import dataclasses
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.api import prepared
from engine.api.saved_run import SavedRun
from engine.base.errors import CheckpointError, ConfigError, ConvoyError, RunError
from engine.cluster.exit_status import ExitStatus
from engine.compile import memory_check
from engine.loop.preemption import Preempted
from engine.run.lease import DirectoryGone
from tests import runs, zoo

SHORT = dict(train__total="2 steps", checkpoint__every=None, evaluations={})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("entry") / "run"
    engine.train(runs.config(train__total="4 steps", train__ema_decay=0.5), workdir=path)
    return path


def test_fresh_moves_the_earlier_run_aside(tmp_path):
    engine.train(runs.config(**SHORT), workdir=tmp_path / "run")
    summary = engine.train(runs.config(**SHORT, train__seed=1), workdir=tmp_path / "run", fresh=True)
    assert summary.step == 2
    assert (tmp_path / "run.old-1/status.json").exists()
    assert "was moved to" in (tmp_path / "run/log.txt").read_text()


def test_run_directory_serves_as_its_own_config(run):
    assert engine.train(str(run), workdir=run).step == 4


@dataclasses.dataclass
class Remove:
    """A hook that removes a file of the run."""

    name: str

    def run(self, trainer, state, step):
        (trainer.directory.path / self.name).unlink()


@pytest.mark.parametrize("name", ["config.txt", "metrics.jsonl"])
def test_run_whose_files_were_removed_is_not_done(name, tmp_path):
    hooks = dict(remove=dict(target="tests.api.train_test.Remove", every="1 step", name=name))
    with pytest.raises(DirectoryGone, match=f"removed while the run trained: {name}") as raised:
        engine.train(runs.config(**SHORT | dict(train__total="1 step"), hooks=hooks), workdir=tmp_path / "run")
    assert raised.value.exit_code == ExitStatus.STOP
    assert runs.status(tmp_path / "run")["state"] == "failed"


def test_default_directory_is_named_after_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = engine.train(runs.config(**SHORT))
    assert summary.directory.path == Path("runs/zoo")


def test_train_restores_signal_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    engine.train(runs.config(**SHORT), workdir=tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_train_works_in_a_worker_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(engine.train(runs.config(**SHORT), workdir=tmp_path)))
    thread.start()
    thread.join()
    assert done[0].step == 2


def test_train_leaves_no_thread_running(tmp_path):
    before = {thread.name for thread in threading.enumerate()}
    engine.train(runs.config(**SHORT), workdir=tmp_path)
    assert {thread.name for thread in threading.enumerate()} - before == set()


def test_export_writes_the_averaged_weights(run, tmp_path):
    names = engine.export(run, tmp_path / "w.safetensors")
    weights = load_file(tmp_path / "w.safetensors")
    assert (
        set(weights) == set(names) == {f"{m}/{p}" for m in ("hidden/0", "hidden/1", "head") for p in ("kernel", "bias")}
    )
    state = SavedRun(run).restore(4, prepared.program(str(run))[0])
    assert state.ema is not None
    assert np.array_equal(weights["head/kernel"], state.ema["head/kernel"])
    assert not np.array_equal(weights["head/kernel"], state.params["head/kernel"])


def test_evaluate_without_a_run_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match=r"is not a run"):
        engine.evaluate(tmp_path)


def test_evaluate_without_evaluations_is_a_config_error(tmp_path):
    engine.train(runs.config(**SHORT), workdir=tmp_path)
    with pytest.raises(ConfigError, match="no evaluations"):
        engine.evaluate(tmp_path)


def test_target_arguments_are_checked_before_the_directory_is_created(tmp_path):
    with pytest.raises(ConfigError, match=r"task.widht: tests.zoo.Classify takes no such argument.*Did you mean width"):
        engine.train(runs.config(task__widht=3), workdir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"evaluations.heldout.data.sead"):
        bad = dict(data=dict(target="tests.zoo.source", sead=1))
        engine.train(runs.config(evaluations=dict(heldout=bad)), workdir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optimizer.momentum: optax.adamw takes no such argument"):
        engine.train(runs.config(optimizer__momentum=0.9), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_workdir_is_a_config_error():
    with pytest.raises(ConfigError, match=r"^workdir: found an empty text"):
        engine.train(runs.config(), workdir="")


def test_hook_arguments_are_checked_before_the_directory_is_created(tmp_path):
    hook = dict(target="tests.loop.trainer_test.Recorder", wrod="x", every="1 step")
    with pytest.raises(ConfigError, match=r"hooks.mine.wrod: .*Did you mean word"):
        engine.train(runs.config(hooks={"mine": hook}), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_limit_is_the_size_of_an_epoch(tmp_path):
    config = runs.config(**{**SHORT, "train__total": "1 epoch"}, data__limit=40)
    assert engine.train(config, workdir=tmp_path).total_steps == 3  # of 16 examples each


def test_fast_dev_run_takes_two_steps(tmp_path):
    summary = engine.train(runs.config(), workdir=tmp_path, fast_dev_run=True)
    assert (summary.state, summary.step) == ("done", 2)
    assert "heldout/loss" in summary.metrics


class Terminate:
    """A hook that sends SIGTERM to this process."""

    def run(self, trainer, state, step):
        os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_fast_dev_run_names_no_folder_that_is_gone():
    config = runs.config(hooks={"stop": dict(target=f"{__name__}.Terminate")}, evaluations={})
    with pytest.raises(Preempted, match=r"^asked to stop at step 1/2. This run keeps no files; to keep them, add"):
        engine.train(config, fast_dev_run=True)


def test_number_of_cpu_devices_cannot_change_after_jax_started(tmp_path, monkeypatch):
    zoo.program(zoo.Classify()).init()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    with pytest.raises(ConfigError, match=r"mesh.cpu_devices = 3: JAX has already started"):
        engine.train(runs.config(**SHORT, mesh__cpu_devices=3), workdir=tmp_path)


def test_init_checkpoint_applies_to_new_runs_only(run, tmp_path):
    config = runs.config(
        **{**SHORT, "train__total": "1 step", "checkpoint__every": "1 step"},
        init__checkpoint=str(run), init__paths={"head": None}, optimizer__learning_rate=0.0, train__seed=3,
    )  # fmt: skip
    engine.train(config, workdir=tmp_path / "run")
    engine.export(run, tmp_path / "before.safetensors")
    engine.export(tmp_path / "run", tmp_path / "after.safetensors")
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    for name in before:
        assert (before[name].tolist() == after[name].tolist()) == (not name.startswith("head/")), name
    log = (tmp_path / "run/log.txt").read_text()
    assert f"initialized 4 arrays from {run}/checkpoints/4, from its EMA" in log
    assert "random: params/head/bias, params/head/kernel; unused: params/head/bias, params/head/kernel" in log
    engine.train(config, workdir=tmp_path / "run")
    assert (tmp_path / "run/log.txt").read_text().count("initialized 4 arrays from") == 1
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        engine.train(runs.config(**SHORT, init__checkpoint=str(tmp_path)), workdir=tmp_path / "other")


def test_failed_first_start_does_not_block_the_directory(tmp_path):
    with pytest.raises(ConvoyError, match="mesh"):
        engine.train(runs.config(**SHORT, mesh__fsdp=3), workdir=tmp_path)
    with pytest.raises(ConvoyError, match="Example 3"):
        engine.train(runs.config(**SHORT, data__target="tests.loop.trainer_test.Broken"), workdir=tmp_path)
    assert engine.train(runs.config(**SHORT, train__seed=5), workdir=tmp_path).step == 2


def test_unknown_best_metric_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"'heldout/los': no evaluation has this metric. Did you mean heldout/loss"):
        engine.train(runs.config(checkpoint__best="heldout/los"), workdir=tmp_path)


def test_sizes_beyond_the_memory_are_refused_before_they_are_allocated(tmp_path):
    rows = 2**31 - 16  # of 72 bytes
    sizes = {
        "train.global_batch_size": dict(train__global_batch_size=rows),
        "evaluations.heldout.batch_size": dict(evaluations__heldout__batch_size=rows),
        "train.global_batch_size: .* for 2,000,000,000 batches": dict(
            data__prefetch=2 * 10**9, train__total=f"{2 * 10**9} steps"
        ),
        "task": dict(task__width=2**20),
    }
    for words, settings in sizes.items():
        with pytest.raises(ConfigError, match=rf"^{words}.* There are ") as error:
            engine.train(runs.config(**settings), workdir=tmp_path / "run")
        assert "the run needs at least" in str(error.value) and "GiB of host memory" in str(error.value)
        assert not (tmp_path / "run/config.txt").exists()


def test_run_that_hardly_fits_into_the_memory_prints_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory_check, "WARN_SHARE", 0.0)
    config = runs.config(train__total="1 step", log__progress="lines")
    engine.train(config, workdir=tmp_path)
    log, shown = (tmp_path / "log.txt").read_text(), capsys.readouterr().err
    assert "warning: task: the run needs at least" in log
    assert shown.count("activations and gradients need more") == log.count("activations and gradients need more") == 2
