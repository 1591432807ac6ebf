"""Sizes that the memory cannot hold, and stop requests while a run traces, compiles or reads its first batch."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


class Traced(zoo.Classify):
    """A Task whose loss is traced for ten minutes."""

    def loss(self, model, batch, rng):
        print("tracing", flush=True)
        time.sleep(600)
        raise AssertionError


class SlowBatches:
    """Examples that the reader threads cannot read within ten minutes."""

    def __init__(self, begun: str):
        self._source, self._begun = zoo.source(), Path(begun)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if threading.current_thread() is not threading.main_thread():
            self._begun.touch()
            time.sleep(600)
        return self._source[index]


@pytest.mark.case("SIGTERM before the first step")
@pytest.mark.parametrize("what", ["tracing", "compiling", "reading the first batch"])
def test_sigterm_before_the_first_step_ends_the_run_within_the_grace(what, tmp_path, add_row):
    run, begun = tmp_path / "run", tmp_path / "begun"
    settings = {
        "tracing": {"task": {"target": "tests.faults.sizes_test.Traced"}},
        "compiling": {"task__model": "cnn", "train__steps_per_dispatch": 128},  # compiles for minutes
        "reading the first batch": {"data": {"target": "tests.faults.sizes_test.SlowBatches", "begun": str(begun)}},
    }
    config = harness.config(tmp_path / "config", **settings[what])
    variables: dict[str, Any] = {"JAX_LOG_COMPILES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    with harness.Job("train", config, f"--workdir={run}", **variables) as job:
        begins = {
            "tracing": lambda: "tracing\n" in job.output,
            "compiling": lambda: "MLIR module conversion jit(steps)" in job.output,
            "reading the first batch": begun.exists,
        }
        job.until(begins[what])
        begin = job.signal(0, signal.SIGTERM)
        code, seconds = job.end(), time.monotonic() - begin
        output, left = job.output, job.left()
    assert (code, left) == (42, []), output
    assert seconds <= runs.limit(15), output  # a pod may be killed then
    assert "Preempted: asked to stop" in output and "Traceback" not in output
    status = runs.status(run)
    assert (status["state"], status["exit_code"], status["step"]) == ("preempted", 42, 0)
    add_row(f"SIGTERM while {what}", detected_s=seconds, code=code)


@pytest.mark.case("sizes beyond the memory")
def test_batch_beyond_the_memory_is_refused_with_the_numbers(tmp_path, add_row):
    config, run = harness.config(tmp_path / "config", train__global_batch_size=2**31 - 16), tmp_path / "run"
    with harness.Job("train", config, f"--workdir={run}") as job:
        assert job.end() == 1, job.output
        took = time.monotonic() - job.started
        assert "ConfigError: train.global_batch_size: the run needs at least " in job.output
        assert "2,147,483,632 rows of 72 bytes" in job.output and "Traceback" not in job.output
    assert runs.status(run)["exit_code"] == 1 and not (run / "config.txt").exists()
    add_row("a batch of 2 billion rows", detected_s=took, code=1)
