"""Storage that is read-only, full, slow, or does not answer.

A full disk is a tmpfs of a few MiB in a mount namespace of the job; the test reaches it through /proc. A slow or
hanging disk is `benchmarks/disk.py`: a library between the processes and libc that delays real calls. A file that the
test changes controls it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.disk import Disk, has_compiler
from engine.storage.background import PROBE_S
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

START_S = 40.0  # until a process checks its directory
NOT_SAVED = "could not be saved"


def can_mount() -> bool:
    """Whether this user may mount a tmpfs in a new namespace."""
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True).returncode == 0
    return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this machine does not allow mounting a tmpfs in a namespace")
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="this machine has no C compiler (cc)")


def on_small_disk(folder: Path, size: str, kept: Path, options: str = ":") -> dict[str, Any]:
    """Settings of a job for which a small disk is mounted at `folder`, whose files are copied to `kept` at its end."""
    mount, copy = f"mount -t tmpfs -o size={size} none {folder} && {options}", f"cp -r {folder}/. {kept}"
    if os.geteuid():
        return {"prefix": ("unshare", "-rm", "sh", "-c", f'{mount}; "$@"; code=$?; {copy}; exit $code', "sh")}
    then = f"""
if child := os.fork():
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    subprocess.run({copy!r}, shell=True)
    os._exit(code if code >= 0 else 128 - code)
"""
    return {"first": harness.own_mounts(mount) + then}


def inside(job: harness.Job, folder: Path) -> Path:
    """The folder in the mount namespace of a job."""

    def found() -> Path | None:
        outside = os.stat(folder).st_dev
        for pid in job.pids():
            seen = Path(f"/proc/{pid}/root{folder}")
            with contextlib.suppress(OSError):
                if os.stat(seen).st_dev != outside:
                    return seen
        return None

    return job.until(found)


def fill(folder: Path) -> Path:
    """Fills the remaining space; returns the file that fills it."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def failed_save(job: harness.Job) -> str:
    """The first message about a save that failed, or an empty string."""
    lines = [line for line in job.output.splitlines() if NOT_SAVED in line]
    return lines[0] if lines else ""


@pytest.mark.case("a full disk")
@needs_mounts
def test_temporarily_full_disk_loses_only_the_saves_of_that_time(tmp_path, two, add_row):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    where = harness.config(tmp_path / "config", pause=0.1, log__examples=False, log__progress="lines", mesh__fsdp=2)
    with harness.Job("train", where, f"--workdir={disk}/run", processes=2, **on_small_disk(disk, "8m", kept)) as job:
        run = inside(job, disk) / "run"
        job.until(lambda: harness.saved(run))
        filler, full_at = fill(run.parent), time.monotonic()
        sentence = job.until(lambda: failed_save(job))
        detected = time.monotonic() - full_at
        before = max(harness.saved(run))
        assert "No space left on device" in sentence, sentence
        assert f"{disk}/run/checkpoints: step" in sentence and "free there, the state has" in sentence
        assert f"The newest checkpoint is that of step {before}. Training continues" in sentence
        filler.unlink()
        freed_at = time.monotonic()
        job.until(lambda: max(harness.saved(run)) > before)
        recovered = time.monotonic() - freed_at
        assert job.end() == 0, job.output
        assert "Traceback" not in job.output, job.output
    outcome = harness.outcome(kept / "run")
    same = (outcome.losses, outcome.state) == (two.losses, two.state)
    assert same
    assert detected <= runs.limit(30)
    add_row("disk full in an async save, 2 processes", detected_s=detected, recovered_s=recovered, lost=0,
         bitwise=same, code=0)  # fmt: skip


@pytest.mark.case("a full disk")
@needs_mounts
def test_permanently_full_disk_stops_the_run_by_policy_or_at_its_end(tmp_path, add_row):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    for policy in ("stop", "continue"):
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        where = harness.config(
            tmp_path / policy, pause=0.1, log__examples=False, checkpoint__on_failure=policy, train__total="30 steps"
        )
        with harness.Job("train", where, f"--workdir={disk}/run", **on_small_disk(disk, "8m", kept)) as job:
            run = inside(job, disk) / "run"
            job.until(lambda run=run: harness.saved(run))
            fill(run.parent)
            full_at = time.monotonic()
            assert job.end() == 42, job.output
            stopped = time.monotonic() - full_at
            assert job.output.count(f"StorageError: {disk}/run/checkpoints: step") == 1, job.output
            assert "The newest checkpoint is that of step" in job.output and "Traceback" not in job.output
        (kept / "run" / "../filler").unlink()
        newest = max(harness.saved(kept / "run"))
        assert harness.state_hashes(kept / "run", newest)
        if policy == "stop":
            assert stopped <= runs.limit(30)
            add_row("disk stays full, on_failure=stop", detected_s=stopped, code=42)


@pytest.mark.case("hanging storage")
@needs_compiler
def test_save_on_hanging_storage_is_abandoned_and_training_continues(tmp_path, two, add_row):
    """Only the writes of the second process hang."""
    run = tmp_path / "run"
    disk = Disk(tmp_path, run / "checkpoints")
    where = harness.config(
        tmp_path / "config", pause=0.1, checkpoint__timeout="5 seconds", log__progress="lines", mesh__fsdp=2
    )
    variables = {**disk.environment, zoo.SKIP_SAVES: "1"}
    with harness.Job("train", where, f"--workdir={run}", processes=2, **variables) as job:
        job.until(lambda: harness.saved(run))
        disk.set_rules("1 write hang")
        hangs_at, before = time.monotonic(), max(harness.losses(run))
        sentence = job.until(lambda: failed_save(job))
        detected = time.monotonic() - hangs_at
        assert "not written within checkpoint.timeout, 5 s" in sentence
        assert "Training continues" in sentence
        assert "process 1 is writing" in sentence and "process 0 is" not in sentence
        reached = max(harness.losses(run))
        assert reached > before
        job.until_step(run, reached + 2)  # while the disk hangs
        disk.set_rules()
        healed_at, newest = time.monotonic(), max(harness.saved(run))
        job.until(lambda: max(harness.saved(run)) > newest)
        recovered = time.monotonic() - healed_at
        abandoned = re.search(r"step (\d+) could not", sentence)
        assert abandoned is not None and int(abandoned[1]) not in harness.saved(run)  # although its thread continued
        assert job.end() == 0, job.output
    assert harness.outcome(run) == two
    add_row("storage hangs in a save of one of 2 processes", detected_s=detected, recovered_s=recovered, lost=0,
         bitwise=True, code=0)  # fmt: skip


@pytest.mark.case("hanging storage")
@pytest.mark.parametrize("preempted", [False, True])
@needs_compiler
def test_run_on_hanging_storage_ends_within_the_timeouts(preempted, tmp_path, add_row):
    run = tmp_path / "run"
    disk = Disk(tmp_path, run / "checkpoints")
    where = harness.config(tmp_path / "config", pause=0.1, checkpoint__timeout="5 seconds", train__total="40 steps")
    variables = {**disk.environment, zoo.SKIP_SAVES: "1"}
    with harness.Job("train", where, f"--workdir={run}", **variables) as job:
        job.until(lambda: harness.saved(run))
        job.until_step(run, 6)  # so that the last save has a newer state
        disk.set_rules("* write hang")
        hangs_at = job.signal(0, signal.SIGTERM) if preempted else time.monotonic()
        assert job.end() == 42, job.output
        what = "storage hangs at a preemption" if preempted else "storage hangs to the end"
        add_row(what, detected_s=time.monotonic() - hangs_at, code=42)
        assert ("Preempted: asked to stop at step" if preempted else "StorageError: ") in job.output, job.output
        newest = max(harness.saved(run))
        assert f"The newest checkpoint is that of step {newest}. It was the last save of this attempt" in job.output
    assert harness.status(run)["state"] != "done"


@pytest.mark.case("hanging storage")
@needs_compiler
def test_hanging_restore_in_one_process_ends_all_and_is_reported(tmp_path, two_run, add_row):
    run = Path(shutil.copytree(two_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(harness.STEPS))
    where = f"--config={two_run.parent / 'config'}"
    disk = Disk(tmp_path, run / "checkpoints")
    disk.set_rules("1 read hang")
    words = ("train", where, f"--workdir={run}", "--config.checkpoint.timeout=12 seconds")
    with harness.Job(*words, processes=2, **disk.environment) as job:
        assert job.end() == 42, job.output
        took = time.monotonic() - job.started
        assert "not restored within checkpoint.timeout, 12 s: process 1 did not finish" in job.output, job.output
        assert "Traceback" not in job.output
    add_row("a restore hangs in one of two processes", detected_s=took, code=42)


@pytest.mark.case("slow storage")
@needs_compiler
def test_saves_are_skipped_on_slow_storage_and_training_continues(tmp_path, one, add_row):
    """Each write takes 2 s, so a save takes half a minute. A benchmark measures how much a step slows down."""
    run = tmp_path / "run"
    disk = Disk(tmp_path, run / "checkpoints")
    where = harness.config(tmp_path / "config", pause=0.1, log__progress="lines", log__verbose=True)
    variables = {**disk.environment, zoo.SKIP_SAVES: "1"}
    with harness.Job("train", where, f"--workdir={run}", **variables) as job:
        job.until(lambda: harness.saved(run))
        disk.set_rules("* write 2")
        slow_at = time.monotonic()
        job.until(lambda: "is still being written: the storage is slower than checkpoint.every" in job.output)
        detected = time.monotonic() - slow_at
        job.until(lambda: job.output.count("is not saved, since step") >= 3)
        saving = [line for line in job.output.splitlines() if "saving checkpoint of step" in line]
        assert len(saving) <= len(harness.saved(run)) + 60 // harness.SAVE_EVERY - 3
        disk.set_rules()
        assert job.end() == 0, job.output
        assert NOT_SAVED not in job.output
    assert harness.outcome(run) == one
    add_row("storage takes 2 s a write: saves are skipped", detected_s=detected, lost=0, bitwise=True, code=0)


@pytest.mark.case("a directory that cannot be written")
@needs_mounts
def test_unwritable_run_directory_is_refused_before_the_first_step(tmp_path, add_row):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    (tmp_path / "file").write_text("")
    where = harness.config(tmp_path / "config")
    read_only = on_small_disk(disk, "8m", kept, f"mount -o remount,ro {disk}")
    for workdir, own, words in (
        (f"{disk}/run", read_only, "Read-only file system"),
        (f"{tmp_path}/file/run", {}, "Not a directory"),
    ):
        with harness.Job("train", where, f"--workdir={workdir}", **own) as job:
            assert job.end() == 1, job.output
            took = time.monotonic() - job.started
            assert f"RunError: {workdir}: cannot be written ({words})" in job.output, job.output
            assert "step" not in job.output and "Traceback" not in job.output
        assert took <= runs.limit(START_S)
    add_row("read-only output directory", detected_s=took, code=1)


@pytest.mark.case("a directory that cannot be written")
@needs_compiler
def test_hanging_run_directory_is_refused_before_the_first_step(tmp_path, add_row):
    run, where = tmp_path / "run", harness.config(tmp_path / "config")
    disk = Disk(tmp_path, run)
    run.mkdir()
    disk.set_rules("* write hang")
    with harness.Job("train", where, f"--workdir={run}", **disk.environment) as job:
        assert job.end() == 42, job.output
        took = time.monotonic() - job.started
        assert f"RunError: {run}: the storage does not answer (no answer within {PROBE_S:g} s)" in job.output
    assert took <= runs.limit(PROBE_S + START_S)
    assert not list(run.iterdir())
    add_row("output directory that hangs", detected_s=took, code=42)
