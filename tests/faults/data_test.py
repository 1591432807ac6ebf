"""Records that are damaged or missing, and data workers that are killed, stopped or orphaned.

Tests damage the bytes of files. Jobs have a separate folder mounted as /dev/shm (in a mount namespace), so that what
they leave there is not mixed with that of other programs.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.source import ArraySource
from engine.readers.array_record import write_array_record
from tests import runs, zoo
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]

FILES, EACH = 3, 32


class Missing:
    """The examples of tests/zoo.py, two of which cannot be opened."""

    def __init__(self, folder: str, gone: tuple[int, ...] = (7, 50)):
        self._folder, self._gone, self._source = folder, gone, zoo.source(64)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        if index in self._gone:
            open(f"{self._folder}/{index}.bin")  # noqa: SIM115, the file does not exist
        return self._source[index]


def large() -> ArraySource:
    """The examples of tests/zoo.py, each with 64 KiB more, so that batches are sent in shared memory."""
    return ArraySource({**zoo.examples(64), "more": np.zeros((64, 16 << 10), np.float32)})


def written(folder: Path) -> Path:
    """Writes three files of 32 records; returns the folder."""
    folder.mkdir()
    for i in range(FILES):
        write_array_record(zoo.source(EACH, i), str(folder / f"train-{i}.arrayrecord"))
    return folder


def flip(file: Path, offset: int) -> None:
    """Flips one bit of a file."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def damaged(folder: Path) -> Path:
    """Writes the files and flips a bit in a record of the second file, which its checksum detects."""
    flip(written(folder) / "train-1.arrayrecord", 2000)
    return folder


def records(folder: Path, **more: Any) -> dict[str, Any]:
    data = {"target": "engine.readers.array_record.ArrayRecordSource", "pattern": str(folder / "train-*.arrayrecord")}
    return {"data": {**data, **more}, "evaluations": {}}


def bad_lines(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "bad_examples").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.case("bad records")
def test_on_error_stop_reports_the_damaged_record_and_its_file(tmp_path, add_row):
    folder = damaged(tmp_path / "data")
    where = harness.config(tmp_path / "config", **records(folder))
    with harness.Job("train", where, f"--workdir={tmp_path / 'run'}") as job:
        assert job.end() == 1, job.output
        last = job.output.splitlines()[-1]
        assert "Traceback" not in job.output
    assert last.startswith("DataError: Example 41 of engine.readers.array_record.ArrayRecordSource: record 9 of "), last
    assert f"{folder}/train-1.arrayrecord: " in last
    add_row("a damaged record: stop", code=1)


@pytest.mark.case("bad records")
def test_on_error_skip_logs_bad_records_and_resumes_bitwise_equal(tmp_path, add_row):
    where = harness.config(tmp_path / "config", pause=0.05, **records(damaged(tmp_path / "data"), on_error="skip"))
    outcomes = []
    for name in ("killed", "whole"):
        run = tmp_path / name
        if name == "killed":
            with harness.Job("train", where, f"--workdir={run}") as job:
                job.until_step(run, 22)
                job.signal(0, signal.SIGKILL)
                assert job.end() == 137
        with harness.Job("train", where, f"--workdir={run}") as job:
            assert job.end() == 0, job.output
        assert "Example 41 of" in (run / "log.txt").read_text()
        counts = runs.rows(run, "bad_examples")
        steps = {line["step"] for line in bad_lines(run)}
        assert steps == {step for step, count in counts.items() if count}
        assert len(steps) == 10  # 60 batches of 16 are 10 epochs of 96 examples
        assert {line["example"] for line in bad_lines(run)} == {41}
        assert all("record 9 of" in line["error"] for line in bad_lines(run))
        outcomes.append(harness.outcome(run))
    assert all(len(examples) == 16 for examples in outcomes[1].examples.values())
    assert outcomes[0] == outcomes[1]
    add_row("a damaged record: skip, the process killed", bitwise=True, code=0)


@pytest.mark.case("bad records")
def test_two_processes_skip_the_same_missing_files_as_one(tmp_path, add_row):
    data = {"target": "tests.faults.data_test.Missing", "folder": str(tmp_path), "on_error": "skip"}
    where = harness.config(tmp_path / "config", mesh__fsdp=2, data=data, evaluations={})
    outcomes = []
    for processes, devices in ((2, 1), (1, 2)):
        run = tmp_path / f"run-{processes}"
        with harness.Job("train", where, f"--workdir={run}", processes=processes, devices=devices) as job:
            assert job.end() == 0, job.output
        assert sorted({line["example"] for line in bad_lines(run)}) == [7, 50]
        assert "No such file" in bad_lines(run)[0]["error"]
        assert sum(runs.rows(run, "bad_examples").values()) == len(bad_lines(run)) == 30
        outcomes.append(harness.outcome(run))
    assert outcomes[0] == outcomes[1]
    add_row("a missing record: skip, in two processes", bitwise=True, code=0)


@pytest.mark.case("bad records")
def test_too_many_bad_records_end_the_run(tmp_path, add_row):
    data = {"target": "tests.faults.data_test.Missing", "folder": str(tmp_path), "on_error": "skip"}
    where = harness.config(tmp_path / "config", data={**data, "gone": tuple(range(1, 64, 4))}, evaluations={})
    with harness.Job("train", where, f"--workdir={tmp_path / 'run'}") as job:
        assert job.end() == 1, job.output
        assert "examples cannot be read, and data.on_error=skip allows 10%" in job.output.splitlines()[-1]
    add_row("too many bad records: skip", code=1)


@pytest.fixture
def with_workers(tmp_path: Path) -> Callable[..., harness.Job]:
    """Starts a run with a data worker, whose /dev/shm is a separate mount: the folder `shm`."""
    shm, run = tmp_path / "shm", tmp_path / "run"
    shm.mkdir()
    where = harness.config(
        tmp_path / "config", pause=0.1, evaluations={}, data={"target": "tests.faults.data_test.large", "workers": 1}
    )

    def start(*words: str, mount: str = f"--bind {shm}") -> harness.Job:
        own: dict[str, Any] = {"first": harness.own_mounts(f"mount {mount} /dev/shm")}
        if os.geteuid():
            own = {"prefix": ("unshare", "-rm", "sh", "-c", f'mount {mount} /dev/shm && exec "$0" "$@"')}
        return harness.Job("train", where, f"--workdir={run}", *words, **own)

    return start


def workers(job: harness.Job) -> list[int]:
    """The pids of its data workers."""
    return [pid for pid in job.pids() if b"spawn_main" in command(pid)]


def command(pid: int) -> bytes:
    """The command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def assert_nothing_left(job: harness.Job, tmp_path: Path, seconds: float = 20.0) -> None:
    """No process of the job, and no named shared memory."""
    end = time.monotonic() + runs.limit(seconds)
    while job.pids() or os.listdir(tmp_path / "shm"):
        assert time.monotonic() < end, ([command(pid) for pid in job.pids()], os.listdir(tmp_path / "shm"))
        time.sleep(0.05)


@pytest.mark.case("data workers that fail")
def test_killed_data_worker_ends_the_run_with_42_within_20_s(with_workers, one, tmp_path, add_row):
    with with_workers("--config.data.workers=2") as job:
        job.until_step(tmp_path / "run", 12)
        pid = workers(job)[0]
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert job.end() == 42, job.output
        detected = time.monotonic() - begin
        last = job.output.splitlines()[-1]
        assert last.startswith("DataWorkerError: data worker "), job.output
        assert f"(pid {pid}) was killed by SIGKILL" in last
        assert_nothing_left(job, tmp_path)
    assert detected < runs.limit(20)
    # A container gives this folder 64 MB unless it is asked for more. The workers do not need it.
    with with_workers(mount="-t tmpfs -o size=4k none") as job:
        assert job.end() == 0, job.output
        assert_nothing_left(job, tmp_path)
    assert harness.outcome(tmp_path / "run") == one
    add_row("a data worker is killed", detected_s=detected, bitwise=True, code=42)
    add_row("/dev/shm has no space", bitwise=True, code=0)


@pytest.mark.case("data workers that fail")
def test_stopped_data_workers_end_the_run_with_42_within_20_s(with_workers, tmp_path, add_row):
    with with_workers() as job:
        job.until_step(tmp_path / "run", 12)
        begin = time.monotonic()
        for pid in workers(job):
            os.kill(pid, signal.SIGSTOP)
        assert job.end() == 42, job.output
        detected = time.monotonic() - begin
        assert "has sent no heartbeat for 10 s" in job.output.splitlines()[-1], job.output
        assert_nothing_left(job, tmp_path)
    assert detected < runs.limit(20)
    add_row("data workers are stopped", detected_s=detected, code=42)


@pytest.mark.case("data workers that fail")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_killed_main_process_leaves_no_worker_and_no_shared_memory(with_workers, tmp_path, add_row, stopped):
    with with_workers() as job:
        job.until_step(tmp_path / "run", 6)
        for pid in workers(job) if stopped else ():
            os.kill(pid, signal.SIGSTOP)
        job.process.kill()
        begin = time.monotonic()
        assert job.end() == 137
        assert_nothing_left(job, tmp_path)
        detected = time.monotonic() - begin
    add_row(f"the main process is killed, with {'stopped ' * stopped}workers", detected_s=detected, code=137)


@pytest.mark.case("data workers that fail")
def test_sigterm_leaves_no_worker_and_no_shared_memory(with_workers, tmp_path, add_row):
    with with_workers() as job:
        job.until_step(tmp_path / "run", 6)
        job.process.send_signal(signal.SIGTERM)
        assert job.end() == 42, job.output
        assert_nothing_left(job, tmp_path)
    add_row("SIGTERM with data workers", code=42)
