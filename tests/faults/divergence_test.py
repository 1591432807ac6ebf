"""Losses that are not finite or spike, and a copy of the state that differs from the others."""

import ctypes
import json
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine.checkpoint.store import CheckpointStore
from engine.cli.main import main
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

BAD = (17, 18, 41)  # batches


class Poison:
    """The examples of tests/zoo.py in 60 batches of 16, in order; bad batches are multiplied by a factor, or NaN."""

    def __init__(self, bad: tuple[int, ...] = BAD, factor: float | None = None):
        self._arrays = zoo.examples(16 * harness.STEPS)
        for batch in bad:
            self._arrays["x"][16 * batch : 16 * batch + 16] *= np.nan if factor is None else factor

    def __len__(self) -> int:
        return 16 * harness.STEPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: x[index] for name, x in self._arrays.items()}


class Flip:
    """A hook that once flips one bit in the copy of a parameter of one process, as a cosmic ray would."""

    def __init__(self, at: int, process: int):
        self._at, self._process = at, process

    def run(self, trainer: Any, state: Any, step: int) -> None:
        if step != self._at:
            return
        array = jax.block_until_ready(state.params["head/kernel"])
        for shard in array.addressable_shards:
            if shard.device.process_index == self._process:  # in memory, as the state is read-only for hooks
                ctypes.c_uint32.from_address(shard.data.unsafe_buffer_pointer()).value ^= 1 << 20


def settings(policy: str, **more: Any) -> dict[str, Any]:
    data = {"target": "tests.faults.divergence_test.Poison", "shuffle": False, **more.pop("data", {})}
    return {"resilience__divergence": policy, "data": data, "evaluations": {}, **more}


def skipped(run: Path) -> list[int]:
    """The skipped batches according to the newest checkpoint."""
    store = CheckpointStore(run / "checkpoints")
    return store.position(max(harness.saved(run)))["skipped"]


def assert_finite(run: Path) -> None:
    """No checkpoint holds a number that is not finite, where a recent loss may be missing."""
    for step in harness.saved(run):
        for path, array in harness.state_arrays(run, step).items():
            if path != "recent":
                assert np.isfinite(array).all(), (step, path)


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that skips the bad batches, without another fault."""
    folder = tmp_path_factory.mktemp("skipping")
    harness.undisturbed(folder, processes=2, **settings("skip", mesh__fsdp=2))
    return folder / "run"


@pytest.mark.case("losses that are not finite or spike")
def test_divergence_stop_ends_the_run_with_43_and_finite_checkpoints(tmp_path, add_row):
    where = harness.config(tmp_path / "config", **settings("stop", checkpoint__keep_latest=20))
    run = tmp_path / "run"
    for _ in range(2):
        with harness.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 43, job.output
            expected = "Diverged: step 18: the loss is not finite; the update was skipped"
            assert job.output.splitlines()[-1].startswith(expected)
            assert "Traceback" not in job.output
        assert harness.status(run)["exit_code"] == 43
    assert harness.saved(run) == [5, 10, 15]
    assert_finite(run)
    add_row("not finite: stop", lost=0, code=43)


@pytest.mark.case("losses that are not finite or spike")
def test_divergence_skip_logs_and_saves_the_skipped_batches(skipping, add_row):
    assert [step for step, n in runs.rows(skipping, "skipped").items() if n] == [batch + 1 for batch in BAD]
    assert skipped(skipping) == list(BAD)
    log = (skipping / "log.txt").read_text()
    assert all(f"the update of batch {batch} is skipped" in log for batch in BAD)
    assert_finite(skipping)
    lines = [json.loads(line) for line in (skipping / "metrics.jsonl").read_text().splitlines()]
    assert all(line["batch"] == line["step"] - 1 and line["attempt"] == 1 for line in lines if "loss" in line)
    add_row("not finite: skip", lost=0, code=0)


@pytest.mark.case("losses that are not finite or spike")
def test_rollback_after_sigkill_is_bitwise_equal_to_skipping(skipping, tmp_path, add_row):
    more = {"mesh__fsdp": 2, "checkpoint__keep_latest": 20}
    where = harness.config(tmp_path / "config", pause=0.05, **settings("rollback", **more))
    run = tmp_path / "run"
    with harness.Job("train", where, f"--workdir={run}", processes=2) as job:
        job.until(lambda: (run / "log.txt").exists() and "rolling back to step 15" in (run / "log.txt").read_text())
        job.until_step(run, 22)
        job.signal(1, signal.SIGKILL)
        begin = time.monotonic()
        assert job.end() == 137, job.output
        detected = time.monotonic() - begin
    with harness.Job("train", where, f"--workdir={run}", processes=2) as job:
        assert job.end() == 0, job.output
    assert "rolling back to step 40 to continue without batch 41" in (run / "log.txt").read_text()
    assert skipped(run) == list(BAD)
    assert harness.outcome(run) == harness.outcome(skipping)
    assert_finite(run)
    add_row("not finite: rollback, then a process is killed", detected_s=detected, bitwise=True, code=137)


@pytest.mark.case("losses that are not finite or spike")
def test_loss_spike_is_rolled_back(tmp_path, add_row):
    """Bitwise equal to a run that skips the same batch because it is NaN."""
    data = {"bad": (30,)}
    spiky = settings("rollback", resilience__spike=8.0, data={**data, "factor": -30.0})
    outcomes = []
    for name, fields in (("spike", spiky), ("nan", settings("skip", resilience__spike=8.0, data=data))):
        where = harness.config(tmp_path / name, **fields)
        with harness.Job("train", where, f"--workdir={tmp_path / name}-run") as job:
            assert job.end() == 0, job.output
        run = tmp_path / f"{name}-run"
        assert skipped(run) == [30]
        outcomes.append(harness.outcome(run))
    assert "step 31: the loss is a spike; rolling back to step 30" in (tmp_path / "spike-run/log.txt").read_text()
    assert outcomes[0].state == outcomes[1].state
    losses = [{step: loss for step, loss in found.losses.items() if step != 31} for found in outcomes]
    assert losses[0] == losses[1]
    add_row("a loss spike: rollback", bitwise=True, code=0)


@pytest.mark.case("a bit flip in memory")
def test_replica_check_finds_a_flipped_bit_before_it_is_saved(tmp_path, add_row):
    flip = {"flip": {"target": "tests.faults.divergence_test.Flip", "every": "1 step", "at": 17, "process": 1}}
    fields = {"mesh__data": 2, "resilience__replica_check": "10 steps", "checkpoint__every": "15 steps"}
    run = tmp_path / "run"
    where = harness.config(tmp_path / "config", hooks=flip, **fields)
    with harness.Job("train", where, f"--workdir={run}", processes=2) as job:
        assert job.end() == 42, job.output
        assert "ReplicaError: step 20: copies of" in job.output
        assert " of process 1" in job.output
        assert "Traceback" not in job.output
    assert harness.saved(run) == [15]
    plain = harness.config(tmp_path / "plain", **fields)
    with harness.Job("train", plain, f"--workdir={run}", processes=2) as job:
        assert job.end() == 0, job.output
    assert harness.outcome(run) == harness.undisturbed(tmp_path / "undisturbed", processes=2, **fields)
    add_row("a flipped bit in one copy of a parameter", lost=5, bitwise=True, code=42)


@pytest.mark.case("a device that computes wrong")
def test_gradient_check_finds_a_flipped_bit_in_a_product_of_one_device(tmp_path, add_row, capsys):
    """The mesh splits all arrays, so that there are no copies to compare."""
    fields = {"mesh__fsdp": 8, "resilience__gradient_check": "4 steps", "checkpoint__every": "4 steps"}
    fields |= {"train__total": "12 steps", "evaluations": {}}
    task = {"target": "tests.faulty_device.Faulty", "device": 5, "since": 8}
    run = tmp_path / "run"
    assert main(["train", harness.config(tmp_path / "config", task=task, **fields), f"--workdir={run}"]) == 42
    error = capsys.readouterr().err
    assert "GradientError: step 8: devices computed different gradients of head/bias, head/kernel, hidden/0/" in error
    assert "from the same rows: device 5 of process 0 computed another one than two other devices. " in error
    assert "checkpoints since step 4, where the last check passed, may have the error" in error
    assert "Traceback" not in error
    assert harness.saved(run) == [4]
    assert [row["step"] for row in runs.complete_lines(run / "metrics.jsonl") if "gradient_check_s" in row] == [4]
    add_row("a flipped bit in one product of one of 8 devices, fsdp=8", code=42)
