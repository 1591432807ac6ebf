"""Sizes that the memory cannot hold, and stop requests while a run traces, compiles or reads its first batch."""

import ctypes
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
        "compiling": {"task__model": "cnn", "train__steps_per_dispatch": 32},  # compiles for a minute
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


@pytest.mark.case("out of memory")
def test_limit_of_virtual_memory_that_is_too_low_is_one_sentence(tmp_path, add_row):
    run, limited = tmp_path / "run", ("bash", "-c", 'ulimit -v 1000000; exec "$@"', "bash")
    with harness.Job("train", harness.config(tmp_path / "config"), f"--workdir={run}", prefix=limited) as job:
        assert job.end() == 1
        lines = job.output.splitlines()
    assert len(lines) == 1 and lines[0].startswith("ConfigError: ulimit -v: the limit of virtual memory is 976.6 MiB, ")
    assert not run.exists()
    add_row("ulimit -v is too low for JAX", code=1)


class Failing:
    """A hook that raises MemoryError in a thread of the engine at a step."""

    def __init__(self, name: str):
        self._name = name

    def run(self, trainer: Any, state: Any, step: int) -> None:
        thread = next(thread for thread in threading.enumerate() if thread.name == self._name)
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(MemoryError))


@pytest.mark.case("a thread of the engine fails")
def test_thread_of_the_lease_that_fails_ends_the_run_with_its_reason(tmp_path, add_row):
    run = tmp_path / "run"
    hook = {"target": "tests.faults.sizes_test.Failing", "name": "lease", "every": "5 steps"}
    where = harness.config(tmp_path / "config", pause=0.1, train__total="1000 steps", hooks={"failing": hook})
    with harness.Job("train", where, f"--workdir={run}") as job:
        job.until_step(run, 5)
        begin = time.monotonic()
        assert job.end() == 42, job.output
        seconds = time.monotonic() - begin
        lines = [line for line in job.output.splitlines() if line.startswith("ThreadFailed: ")]
    text = lines[0]  # lines of further steps may follow: the main thread trains while the exit callbacks run
    assert len(lines) == 1 and text.startswith("ThreadFailed: the thread lease has failed: MemoryError")
    assert "Memory ran out, or its limit" in text
    assert seconds <= runs.limit(20) and job.left() == []
    status = runs.status(run)
    assert (status["state"], status["exit_code"]) == ("failed", 42)
    assert text == f"ThreadFailed: {status['reason']}"
    add_row("a lack of memory in the thread that renews the lease", detected_s=seconds, code=42)
