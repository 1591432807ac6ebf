"""Cases 35 and the first half of 36: losses that are not finite or spikes, and a copy of the state that differs."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine.checkpoint.store import CheckpointStore
from tests import runs, zoo
from tests.faults import bench

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

BAD = (17, 18, 41)  # batches


class Poison:
    """The zoo's examples in 60 batches of 16, read in order; those of bad batches are times a factor, or NaN."""

    def __init__(self, bad: tuple[int, ...] = BAD, factor: float | None = None):
        self._arrays = zoo.examples(16 * bench.STEPS)
        for batch in bad:
            self._arrays["x"][16 * batch : 16 * batch + 16] *= np.nan if factor is None else factor

    def __len__(self) -> int:
        return 16 * bench.STEPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: x[index] for name, x in self._arrays.items()}


class Flip:
    """A hook that flips one bit of one process's copy of a parameter, as a cosmic ray would, once."""

    def __init__(self, at: int, process: int):
        self._at, self._process = at, process

    def run(self, trainer: Any, state: Any, step: int) -> None:
        if step != self._at:
            return
        array = state.params["head/kernel"]
        copies = []
        for shard in array.addressable_shards:
            copy = np.array(shard.data)
            if shard.device.process_index == self._process:
                copy.view(np.uint32)[0, 0] ^= 1 << 20
            copies.append(jax.device_put(copy, shard.device))
        state.params["head/kernel"] = jax.make_array_from_single_device_arrays(array.shape, array.sharding, copies)


def settings(policy: str, **more: Any) -> dict[str, Any]:
    data = {"target": "tests.faults.divergence_test.Poison", "shuffle": False, **more.pop("data", {})}
    return {"resilience__divergence": policy, "data": data, "evaluations": {}, **more}


def skipped(run: Path) -> list[int]:
    """The batches that the newest checkpoint names."""
    store = CheckpointStore(run / "checkpoints")
    return store.position(max(bench.saved(run)))["skipped"]


def assert_sound(run: Path) -> None:
    """No checkpoint holds a number that is not finite, where a recent loss may be missing."""
    for step in bench.saved(run):
        for path, array in bench.state_arrays(run, step).items():
            if path != "recent":
                assert np.isfinite(array).all(), (step, path)


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that skips the bad batches as it comes to them; nothing else happens to it."""
    folder = tmp_path_factory.mktemp("skipping")
    bench.unbroken(folder, ranks=2, **settings("skip", mesh__fsdp=2))
    return folder / "run"


def test_35_stop_ends_the_run_with_43_and_what_is_saved_is_sound(tmp_path, case):
    where = bench.config(tmp_path / "config", **settings("stop", checkpoint__keep_latest=20))
    run = tmp_path / "run"
    for _ in range(2):
        with bench.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 43, job.output
            told = "Diverged: step 18: the loss or its gradient is not finite; the update was skipped"
            assert job.output.splitlines()[-1].startswith(told)
            assert "Traceback" not in job.output
        assert bench.status(run)["exit_code"] == 43
    assert bench.saved(run) == [5, 10, 15]
    assert_sound(run)
    case(35, "not finite: stop", lost=0, code=43)


def test_35_skip_counts_tells_and_keeps_the_batches(skipping, case):
    assert [step for step, n in runs.rows(skipping, "skipped").items() if n] == [batch + 1 for batch in BAD]
    assert skipped(skipping) == list(BAD)
    log = (skipping / "log.txt").read_text()
    assert all(f"the update of batch {batch} is skipped" in log for batch in BAD)
    assert_sound(skipping)
    lines = [json.loads(line) for line in (skipping / "metrics.jsonl").read_text().splitlines()]
    assert all(line["batch"] == line["step"] - 1 and line["attempt"] == 1 for line in lines if "loss" in line)
    case(35, "not finite: skip", lost=0, code=0)


def test_35_rollback_is_the_run_that_skips_them_bit_for_bit_also_when_it_is_killed(skipping, tmp_path, case):
    more = {"mesh__fsdp": 2, "checkpoint__keep_latest": 20}
    where = bench.config(tmp_path / "config", pause=0.05, **settings("rollback", **more))
    run = tmp_path / "run"
    with bench.Job("train", where, f"--workdir={run}", ranks=2) as job:
        job.until(lambda: (run / "log.txt").exists() and "rolling back to step 15" in (run / "log.txt").read_text())
        job.until_step(run, 22)
        job.signal(1, signal.SIGKILL)
        begin = time.monotonic()
        assert job.end() == 137, job.output
        detected = time.monotonic() - begin
    with bench.Job("train", where, f"--workdir={run}", ranks=2) as job:
        assert job.end() == 0, job.output
    assert "rolling back to step 40 to continue without batch 41" in (run / "log.txt").read_text()
    assert skipped(run) == list(BAD)
    assert bench.outcome(run) == bench.outcome(skipping)
    assert_sound(run)
    case(35, "not finite: rollback, a rank killed after it", detected_s=detected, bitwise=True, code=137)


def test_35_a_spike_of_ten_times_the_loss_is_rolled_back(tmp_path, case):
    """Bit for bit the run whose batch has no number at all, and is skipped for that."""
    data = {"bad": (30,)}
    spiky = settings("rollback", resilience__spike=8.0, data={**data, "factor": -30.0})
    outcomes = []
    for name, fields in (("spike", spiky), ("nan", settings("skip", resilience__spike=8.0, data=data))):
        where = bench.config(tmp_path / name, **fields)
        with bench.Job("train", where, f"--workdir={tmp_path / name}-run") as job:
            assert job.end() == 0, job.output
        run = tmp_path / f"{name}-run"
        assert skipped(run) == [30]
        outcomes.append(bench.outcome(run))
    assert "step 31: the loss is a spike; rolling back to step 30" in (tmp_path / "spike-run/log.txt").read_text()
    assert outcomes[0].state == outcomes[1].state
    losses = [{step: loss for step, loss in found.losses.items() if step != 31} for found in outcomes]
    assert losses[0] == losses[1]
    case(35, "a loss spike: rollback", bitwise=True, code=0)


def test_36_a_bit_that_flips_in_one_copy_is_found_its_device_named_and_nothing_saved(tmp_path, case):
    flip = {"flip": {"target": "tests.faults.divergence_test.Flip", "every": "1 step", "at": 17, "process": 1}}
    fields = {"mesh__data": 2, "resilience__replica_check": "10 steps", "checkpoint__every": "15 steps"}
    run = tmp_path / "run"
    where = bench.config(tmp_path / "config", hooks=flip, **fields)
    with bench.Job("train", where, f"--workdir={run}", ranks=2) as job:
        assert job.end() == 42, job.output
        assert "ReplicaError: step 20: copies of" in job.output
        assert " of process 1" in job.output
        assert "Traceback" not in job.output
    assert bench.saved(run) == [15]
    plain = bench.config(tmp_path / "plain", **fields)
    with bench.Job("train", plain, f"--workdir={run}", ranks=2) as job:
        assert job.end() == 0, job.output
    assert bench.outcome(run) == bench.unbroken(tmp_path / "unbroken", ranks=2, **fields)
    case(36, "a flipped bit in one copy of a parameter", lost=5, bitwise=True, code=42)
