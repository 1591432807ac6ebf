"""Cases 20 to 24 and 28: saves that are killed, checkpoints that are damaged, and those that must stay."""

import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.checkpoint.integrity import DamagedCheckpoint, verify
from engine.checkpoint.manifest import MANIFEST, read_lock, read_manifest
from tests import runs
from tests.faults import bench

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

KILLS = 20


def names(run: Path) -> set[str]:
    """What lies in the folder of the checkpoints, but for their results."""
    return {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}


def test_20_a_save_that_is_killed_at_any_moment_leaves_the_last_whole_step(tmp_path, case):
    """Two runs side by side save every step; each start is killed at a random moment between two whole saves."""
    seed = int(os.environ.get("CONVOY_TEST_SEED", time.time_ns() % 10**6))
    print(f"CONVOY_TEST_SEED={seed}")
    settings = {"train__total": "50 steps", "checkpoint__every": "1 step", "evaluations": {}}
    whole = bench.unbroken(tmp_path / "whole", checkpoint__keep_latest=100, **settings)
    digests = {step: read_manifest(tmp_path / f"whole/run/checkpoints/{step}").arrays for step in range(1, 51)}
    where = bench.config(tmp_path / "config", checkpoint__keep_latest=3, **settings)

    def kills(number: int) -> list[set[str]]:
        rng, run = random.Random(seed + number), tmp_path / f"run-{number}"
        left = [killed_once(where, run, rng, digests) for _ in range(KILLS // 2)]
        with bench.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 0, job.output
        assert bench.outcome(run) == whole
        assert names(run) == {"48", "49", "50"}  # nothing of a killed save or deletion is left
        return left

    with ThreadPoolExecutor(2) as both:
        left = [found for run in both.map(kills, range(2)) for found in run]
    print("\n".join(" ".join(sorted(found)) for found in left))
    torn = sum(any("saving" in name for name in found) for found in left)
    assert torn >= KILLS / 4, f"{torn} of the kills fell into a save"
    case(20, f"SIGKILL at {KILLS} moments of saves, {torn} of them torn", lost=0, bitwise=True, code=137)


def killed_once(where: str, run: Path, rng: random.Random, digests: dict) -> set[str]:
    """Starts a run and kills it in or about its third save; returns what it left, every step of which is whole."""
    before, marks = max(bench.saved(run), default=0), []
    with bench.Job("train", where, f"--workdir={run}") as job:
        for more in (1, 2):
            job.until(lambda: max(bench.saved(run), default=0) >= before + more)  # noqa: B023
            marks.append(time.monotonic())
        time.sleep(rng.uniform(0, marks[1] - marks[0]))
        job.signal(0, signal.SIGKILL)
        assert job.end() == 137
    steps = bench.saved(run)
    assert max(steps) >= before + 2
    for step in steps:
        assert verify(run / "checkpoints" / str(step)).arrays == digests[step]
    return names(run)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed after step 30, with the checkpoints of six steps."""
    folder = tmp_path_factory.mktemp("killed")
    where = bench.config(folder / "config", pause=0.02, checkpoint__keep_latest=6)
    with bench.Job("train", where, f"--workdir={folder / 'run'}") as job:
        job.until(lambda: max(bench.saved(folder / "run"), default=0) >= 30)
        job.signal(0, signal.SIGKILL)
        assert job.end() == 137
    return folder


@pytest.fixture
def run(killed, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(killed / "run", tmp_path / "run"))


def go_on(killed: Path, run: Path, *more: str) -> tuple[int, str, int | None]:
    """Starts the run again; returns its exit code, what it told in one line, and the step that it went on from."""
    log = run / "log.txt"
    before = len(log.read_text())
    with bench.Job("train", f"--config={killed / 'config'}", f"--workdir={run}", *more) as job:
        code, output = job.end(), job.output
    output += log.read_text()[before:]
    resumed = re.search(r"resuming from step (\d+)", output)
    return code, " ".join(output.split()), int(resumed[1]) if resumed else None


def flip(path: Path, bit: int) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def largest(step: Path) -> Path:
    """The file of a step that holds most of its arrays."""
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_21_a_shard_that_is_cut_is_named_and_the_step_before_it_is_taken(killed, run, one, case):
    newest, before = bench.saved(run)[-1], bench.saved(run)[-2]
    shard = largest(run / "checkpoints" / str(newest))
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    code, output, resumed = go_on(killed, run)
    assert (code, resumed) == (0, before), output
    name = shard.relative_to(run / "checkpoints" / str(newest)).as_posix()
    assert f"the checkpoint of step {newest} is damaged and set aside as" in output
    assert f"{name}: found {size // 2} bytes, expected {size}" in output
    assert f"{newest}.bad" in names(run) and newest not in bench.saved(run)
    assert bench.outcome(run) == one
    case(21, "a shard is cut", lost=newest - before, bitwise=True, code=0)


def test_21_two_processes_agree_on_the_step_to_take(tmp_path, two, case):
    where, run = (
        bench.config(tmp_path / "config", pause=0.02, mesh__fsdp=2, checkpoint__keep_latest=3),
        tmp_path / "run",
    )
    with bench.Job("train", where, f"--workdir={run}", ranks=2) as job:
        job.until(lambda: max(bench.saved(run), default=0) >= 15)
        for pid in job.pids():
            bench.kill(pid)
    newest, before = bench.saved(run)[-1], bench.saved(run)[-2]
    step = run / "checkpoints" / str(newest)
    shard = max(step.glob("state/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size)
    os.truncate(shard, 10)
    with bench.Job("train", where, f"--workdir={run}", ranks=2) as job:
        assert job.end() == 0, job.output
    log = (run / "log.txt").read_text()
    assert f"the checkpoint of step {newest} is damaged and set aside as" in log
    assert f"resuming from step {before}" in log
    assert bench.outcome(run) == two
    case(21, "a shard of one of two processes is cut", lost=newest - before, bitwise=True, code=0)


def test_22_one_flipped_bit_in_any_file_is_found_before_training(killed, run, one, case):
    newest, rng = bench.saved(run)[-1], random.Random(0)
    step = run / "checkpoints" / str(newest)
    files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        for bit in rng.sample(range(8 * path.stat().st_size), 5):
            flip(path, bit)
            with pytest.raises(DamagedCheckpoint) as error:
                verify(step)
            (problem,) = error.value.problems
            assert problem.startswith(path.relative_to(step).as_posix())
            flip(path, bit)
    verify(step)
    flip(largest(step), 8000)
    code, output, resumed = go_on(killed, run)
    assert (code, resumed) == (0, newest - bench.SAVE_EVERY), output
    assert "found the hash" in output
    assert bench.outcome(run) == one
    case(22, f"one flipped bit in each of {len(files)} files", lost=bench.SAVE_EVERY, bitwise=True, code=0)


def test_23_missing_parts_are_named_and_the_newest_whole_step_is_taken(killed, run, one, case):
    missing = (MANIFEST, "state/_METADATA", "position/position.json", "commit_success.txt")
    steps = bench.saved(run)[::-1]
    for step, name in zip(steps, missing, strict=False):
        (run / "checkpoints" / str(step) / name).unlink()
    code, output, resumed = go_on(killed, run)
    assert (code, resumed) == (0, steps[len(missing)]), output
    for step, name in zip(steps, missing, strict=False):
        assert re.search(rf"step {step} is damaged and set aside as \S+/{step}\.bad: {name}:? is missing", output)
    assert bench.outcome(run) == one
    case(23, "manifest, metadata, position or marker is missing", lost=5 * len(missing), bitwise=True, code=0)


def test_24_when_all_are_bad_the_run_stops_with_the_list_and_does_not_start_anew(killed, run, case):
    steps, losses = bench.saved(run), bench.losses(run)
    for step in steps:
        flip(largest(run / "checkpoints" / str(step)), 8000)
    code, output = verified(run)
    assert code == 43 and output.count("DAMAGED") == len(steps)
    begin = time.monotonic()
    for _ in range(2):  # also when it is started again
        begin = time.monotonic()
        code, output, resumed = go_on(killed, run)
        assert (code, resumed) == (43, None), output
        listed = output[output.rindex("no checkpoint can be used") :]
        assert all(re.search(rf"{step}\.bad: \S+: found the hash \w+, expected \w+", listed) for step in steps)
        assert "--fresh" in listed and "Traceback" not in output
        assert bench.status(run)["exit_code"] == 43
    seconds = time.monotonic() - begin
    assert bench.losses(run) == losses
    case(24, "all checkpoints are bad", detected_s=seconds, code=43)


def verified(run: Path) -> tuple[int, str]:
    done = runs.convoy("checkpoints", "verify", str(run))
    return done.returncode, done.stdout + done.stderr


def test_28_the_newest_good_step_stays_and_so_does_one_that_is_being_read(tmp_path, case):
    where, run = (
        bench.config(tmp_path / "config", pause=0.05, checkpoint__keep_latest=1, evaluations={}),
        tmp_path / "run",
    )
    with bench.Job("train", where, f"--workdir={run}") as job:
        job.until(lambda: bench.saved(run))
        read, seen = bench.saved(run)[-1], set()
        with read_lock(run / "checkpoints" / str(read)):
            while max(seen, default=0) < 40:
                steps = bench.saved(run)
                assert read in steps and job.process.poll() is None, job.output
                seen |= set(steps)
            verify(run / "checkpoints" / str(read))
        assert len(seen) >= 5
        while job.process.poll() is None:
            if not bench.saved(run):  # between two looks at the folder one may have replaced the other
                assert bench.saved(run), "no step was there"
        assert job.end() == 0, job.output
    assert names(run) == {"60"} and verified(run)[0] == 0
    case(28, "keep 1: the newest stays, and one that is read", code=0)
