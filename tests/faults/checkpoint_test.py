"""Saves that are killed, checkpoints that are damaged, and checkpoints that retention must keep."""

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
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

KILLS = 4  # spread over the time between two saves, which finds more than as many random moments
LAST_KILL = 20  # step; a kill from outside may come some steps late, and the run must not have ended


def names(run: Path) -> set[str]:
    """The folders in the checkpoint directory."""
    return {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}


@pytest.mark.case("kills during saves")
def test_sigkill_during_saves_leaves_only_complete_checkpoints(tmp_path, add_row):
    """Two concurrent runs save every step; each start is killed at another moment between two complete saves."""
    seed = int(os.environ.get("CONVOY_TEST_SEED", time.time_ns() % 10**6))
    print(f"CONVOY_TEST_SEED={seed}")
    settings = {"train__total": "30 steps", "checkpoint__every": "1 step", "evaluations": {}}
    whole = harness.undisturbed(tmp_path / "undisturbed", checkpoint__keep_latest=100, **settings)
    digests = {step: read_manifest(tmp_path / f"undisturbed/run/checkpoints/{step}").arrays for step in range(1, 31)}
    where = harness.config(tmp_path / "config", checkpoint__keep_latest=3, **settings)

    def kills(number: int) -> list[set[str]]:
        rng, run = random.Random(seed + number), tmp_path / f"run-{number}"
        left = []
        for moment in rng.sample(range(number, KILLS, 2), KILLS // 2):  # in any order
            if max(harness.saved(run), default=0) < LAST_KILL:
                left.append(killed_once(where, run, (moment + rng.random()) / KILLS, digests))
        with harness.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 0, job.output
        assert harness.outcome(run) == whole
        assert names(run) == {"28", "29", "30"}  # no partial save or deletion is left
        return left

    with ThreadPoolExecutor(2) as both:
        left = [found for run in both.map(kills, range(2)) for found in run]
    print("\n".join(" ".join(sorted(found)) for found in left))
    torn = sum(any("saving" in name for name in found) for found in left)
    assert len(left) >= KILLS / 2 and torn >= len(left) / 4, f"{torn} of {len(left)} kills hit a save"
    add_row(f"SIGKILL at {len(left)} moments of saves, {torn} of them torn", lost=0, bitwise=True, code=137)


def killed_once(where: str, run: Path, moment: float, digests: dict) -> set[str]:
    """Starts a run, kills it around its third save and verifies every saved step; returns the folders that are left.

    `moment` is the part, from 0 to 1, of the time between two saves that passes before the kill.
    """
    before, marks = max(harness.saved(run), default=0), []
    with harness.Job("train", where, f"--workdir={run}") as job:
        for more in (1, 2):
            job.until(lambda: max(harness.saved(run), default=0) >= before + more, poll_s=0.01)  # noqa: B023
            marks.append(time.monotonic())
        time.sleep(moment * (marks[1] - marks[0]))
        job.signal(0, signal.SIGKILL)
        assert job.end() == 137
    steps = harness.saved(run)
    assert max(steps) >= before + 2
    for step in steps:
        assert verify(run / "checkpoints" / str(step)).arrays == digests[step]
    return names(run)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed after step 30, with six checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    where = harness.config(folder / "config", pause=0.05, checkpoint__keep_latest=6)
    with harness.Job("train", where, f"--workdir={folder / 'run'}") as job:
        job.until(lambda: max(harness.saved(folder / "run"), default=0) >= 30)
        job.signal(0, signal.SIGKILL)
        assert job.end() == 137
    return folder


@pytest.fixture
def run(killed, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(killed / "run", tmp_path / "run"))


def restart(killed: Path, run: Path, *more: str) -> tuple[int, str, int | None]:
    """Starts the run again; returns its exit code, its output as one line, and the step that it resumed from."""
    log = run / "log.txt"
    before = len(log.read_text())
    with harness.Job("train", f"--config={killed / 'config'}", f"--workdir={run}", *more) as job:
        code, output = job.end(), job.output
    output += log.read_text()[before:]
    resumed = re.search(r"resuming from step (\d+)", output)
    return code, " ".join(output.split()), int(resumed[1]) if resumed else None


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def largest(step: Path) -> Path:
    """The largest file of a step."""
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.case("a truncated shard")
def test_truncated_shard_is_reported_and_previous_step_is_restored(killed, run, one, add_row):
    newest, before = harness.saved(run)[-1], harness.saved(run)[-2]
    shard = largest(run / "checkpoints" / str(newest))
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    code, output, resumed = restart(killed, run)
    assert (code, resumed) == (0, before), output
    name = shard.relative_to(run / "checkpoints" / str(newest)).as_posix()
    assert f"the checkpoint of step {newest} is damaged and set aside as" in output
    assert f"{name}: found {size // 2} bytes, expected {size}" in output
    assert f"{newest}.bad" in names(run)
    assert harness.outcome(run) == one
    add_row("a truncated shard", lost=newest - before, bitwise=True, code=0)


@pytest.mark.case("a truncated shard")
def test_two_processes_restore_the_same_step_when_one_shard_is_truncated(tmp_path, two_run, two, add_row):
    run, where = Path(shutil.copytree(two_run, tmp_path / "run")), f"--config={two_run.parent / 'config'}"
    newest, before = harness.saved(run)[-1], harness.saved(run)[-2]
    step = run / "checkpoints" / str(newest)
    shard = max(step.glob("state/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size)
    os.truncate(shard, 10)
    with harness.Job("train", where, f"--workdir={run}", processes=2) as job:
        assert job.end() == 0, job.output
    log = (run / "log.txt").read_text()
    assert f"the checkpoint of step {newest} is damaged and set aside as" in log
    assert f"resuming from step {before}" in log
    assert harness.outcome(run) == two
    add_row("a truncated shard of one of two processes", lost=newest - before, bitwise=True, code=0)


@pytest.mark.case("a flipped bit on disk")
def test_flipped_bit_in_any_checkpoint_file_is_detected_at_restore(killed, run, one, add_row):
    newest, rng = harness.saved(run)[-1], random.Random(0)
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
    code, output, resumed = restart(killed, run)
    assert (code, resumed) == (0, newest - harness.SAVE_EVERY), output
    assert "found the hash" in output
    assert harness.outcome(run) == one
    add_row(f"one flipped bit in each of {len(files)} files", lost=harness.SAVE_EVERY, bitwise=True, code=0)


@pytest.mark.case("missing checkpoint files")
def test_missing_checkpoint_files_are_reported_and_newest_complete_step_is_restored(killed, run, one, add_row):
    missing = (MANIFEST, "state/_METADATA", "position/position.json", "commit_success.txt")
    steps = harness.saved(run)[::-1]
    for step, name in zip(steps, missing, strict=False):
        (run / "checkpoints" / str(step) / name).unlink()
    code, output, resumed = restart(killed, run)
    assert (code, resumed) == (0, steps[len(missing)]), output
    for step, name in zip(steps, missing, strict=False):
        assert re.search(rf"step {step} is damaged and set aside as \S+/{step}\.bad: {name}:? is missing", output)
    assert harness.outcome(run) == one
    add_row("manifest, metadata, position or marker is missing", lost=5 * len(missing), bitwise=True, code=0)


@pytest.mark.case("no usable checkpoint")
def test_run_stops_with_a_list_when_every_checkpoint_is_damaged(killed, run, add_row):
    steps, losses = harness.saved(run), harness.losses(run)
    for step in steps:
        flip(largest(run / "checkpoints" / str(step)), 8000)
    code, output = verified(run)
    assert code == 43 and output.count("DAMAGED") == len(steps)
    begin = time.monotonic()
    for _ in range(2):  # the second start ends the same way
        begin = time.monotonic()
        code, output, resumed = restart(killed, run)
        assert (code, resumed) == (43, None), output
        listed = output[output.rindex("no checkpoint can be used") :]
        assert all(re.search(rf"{step}\.bad: \S+: found the hash \w+, expected \w+", listed) for step in steps)
        assert "--fresh" in listed and "Traceback" not in output
        assert harness.status(run)["exit_code"] == 43
    seconds = time.monotonic() - begin
    assert harness.losses(run) == losses
    add_row("every checkpoint is damaged", detected_s=seconds, code=43)


def verified(run: Path) -> tuple[int, str]:
    done = runs.convoy("checkpoints", "verify", str(run))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.case("deletion of old checkpoints")
def test_retention_keeps_the_newest_step_and_a_step_that_is_being_read(tmp_path, add_row):
    where, run = (
        harness.config(tmp_path / "config", pause=0.1, checkpoint__keep_latest=1, evaluations={}),
        tmp_path / "run",
    )
    with harness.Job("train", where, f"--workdir={run}") as job:
        job.until(lambda: harness.saved(run))
        read, seen = harness.saved(run)[-1], set()
        with read_lock(run / "checkpoints" / str(read)):
            while max(seen, default=0) < 40:
                steps = harness.saved(run)
                assert read in steps and job.process.poll() is None, job.output
                seen |= set(steps)
            verify(run / "checkpoints" / str(read))
        assert len(seen) >= 5
        while job.process.poll() is None:
            if not harness.saved(run):  # a newer step may have replaced it during the first listing
                assert harness.saved(run), "no step existed"
        assert job.end() == 0, job.output
    assert names(run) == {"60"} and verified(run)[0] == 0
    add_row("keep 1: the newest step and a step that is read stay", code=0)
