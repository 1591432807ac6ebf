"""The lease of a run directory: who acquires it, when it is taken over, and how its loss is detected."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from engine.base.errors import RunError
from engine.cluster.exit_status import ExitStatus
from engine.run import lease
from engine.run.lease import DirectoryGone, LeaseLost, acquire
from engine.run.owner import TOKEN, Owner

QUICK = {"heartbeat_s": 0.02, "stale_s": 0.5, "grace_s": 0.2}
LONG = 60.0  # seconds; only a failure takes so long
REMOTE = {"boot": "another", "host": "elsewhere", "namespace": "pid:[1]", "pid": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lease"


def write_lease(folder, number=3, heartbeat=7, **changes):
    """Writes the lease of another process; returns its owner."""
    owner = dataclasses.replace(Owner(), **changes)
    folder.mkdir(exist_ok=True)
    (folder / f"{number}.json").write_text(lease._text(owner, heartbeat))
    return owner


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_free_directory_is_acquired_and_released_without_waiting(folder):
    begin = time.monotonic()
    for number in (1, 2, 3):
        owned = acquire(folder, grace_s=LONG, stale_s=LONG)
        assert (owned.takeover, files(folder)) == ("", [f"{number}.json"])
        owned.release()
    assert time.monotonic() - begin < LONG


def test_lease_file_names_the_owner_and_its_heartbeat_advances(folder):
    owned = acquire(folder, **QUICK)
    found = json.loads(owned.path.read_text())
    assert (found["pid"], found["id"]) == (owned.owner.pid, owned.owner.id)
    end = time.monotonic() + 30
    while json.loads(owned.path.read_text())["beat"].strip() in ("0", found["beat"].strip()):
        assert time.monotonic() < end
        time.sleep(0.01)
    owned.release()
    assert json.loads(owned.path.read_text())["beat"].strip() == "released"
    owned.release()


def test_second_job_error_names_the_owner_and_what_to_do(folder):
    owned = acquire(folder)
    with pytest.raises(RunError) as error:
        acquire(folder, grace_s=0.1)
    assert str(error.value) == (
        f"{folder.parent}: another job trains here: process {owned.owner.pid} on host {owned.owner.host}, since "
        f"{owned.owner.since}. Two jobs must not write to one run. Wait until it ends or stop it "
        f"(kill {owned.owner.pid}), then start again; or choose another --workdir=DIR."
    )
    owned.check()
    owned.release()


def test_acquire_waits_for_an_owner_that_is_about_to_end(folder):
    owned = acquire(folder)
    threading.Timer(0.3, owned.release).start()
    after = acquire(folder)
    assert after.takeover == ""
    after.release()


def test_same_token_takes_over_an_unreachable_owner_but_not_a_live_owner(folder, monkeypatch):
    monkeypatch.setenv(TOKEN, "job-7")
    before = write_lease(folder, token="job-7", **REMOTE)
    begin = time.monotonic()
    owned = acquire(folder, grace_s=LONG, stale_s=LONG)
    assert time.monotonic() - begin < LONG
    assert owned.takeover == f"{before} was an earlier start of this job; this start takes the run over"
    with pytest.raises(RunError, match="another job trains here"):
        acquire(folder, grace_s=0.1)
    owned.release()


def test_empty_token_does_not_match_an_earlier_start(folder):
    write_lease(folder, token="", **REMOTE)
    owned = acquire(folder, **QUICK)
    assert "has not renewed its lease" in owned.takeover
    owned.release()


def test_lease_of_a_dead_local_process_is_taken_over_at_once(folder):
    before = write_lease(folder, started="1")
    begin = time.monotonic()
    owned = acquire(folder, grace_s=LONG, stale_s=LONG)
    assert time.monotonic() - begin < LONG
    assert owned.takeover == f"{before} ended without releasing this run; this job takes it over"
    assert files(folder) == ["4.json"]
    owned.release()


def test_staleness_is_measured_by_the_observers_clock_alone(folder, capsys):
    """The wall clock of the other host is far ahead; no process compares it."""
    before = write_lease(folder, since="2999-01-01T00:00:00.000+00:00", **REMOTE)
    begin = time.monotonic()
    owned = acquire(folder, **QUICK)
    assert time.monotonic() - begin >= 0.5
    assert owned.takeover == f"{before} has not renewed its lease of this run for 0.5 s; this job takes it over"
    assert f"in use by {before}; waiting 0.5 s to see whether it is still alive" in capsys.readouterr().err
    owned.release()


def test_acquire_raises_if_the_heartbeat_advances(folder):
    write_lease(folder, heartbeat=7, **REMOTE)
    threading.Timer(0.3, lambda: write_lease(folder, heartbeat=8, **REMOTE)).start()
    with pytest.raises(RunError, match=r"another job trains here: process 1 on host elsewhere.* or stop it, then"):
        acquire(folder, stale_s=30)


def test_unreadable_lease_file_becomes_stale(folder):
    folder.mkdir()
    (folder / "1.json").write_text("")
    owned = acquire(folder, **QUICK)
    assert owned.takeover.startswith("an unknown process has not renewed its lease")
    owned.release()


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_simultaneous_jobs_gets_the_lease(tmp_path, stale):
    """Processes that start together, on a new directory and on a directory whose owner is dead."""
    program = (
        "import os, sys; from pathlib import Path; from engine.run.lease import acquire\n"
        "from engine.base.errors import RunError\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]): pass\n"
        "try: owned = acquire(Path(sys.argv[1]), grace_s=0.3); print('won', flush=True)\n"
        "except RunError as error: print(str(error).split(':')[1].strip(), flush=True)\n"
        "input()"
    )
    folder, go = tmp_path / "lease", tmp_path / "go"
    if stale:
        write_lease(folder, started="1")
    with contextlib.ExitStack() as stack:
        jobs = []
        for _ in range(6):
            words = [sys.executable, "-c", program, str(folder), str(go)]
            jobs.append(
                stack.enter_context(
                    subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                )
            )
        assert [job.stdout.readline() for job in jobs] == [b"ready\n"] * 6
        go.touch()
        answers = sorted(job.stdout.readline() for job in jobs)
        for job in jobs:
            job.kill()
    assert answers == [b"another job trains here\n"] * 5 + [b"won\n"]


def test_claim_from_an_outdated_listing_is_withdrawn(folder, monkeypatch):
    """Other processes take the lease between the listing and the claim of this process."""
    owner = write_lease(folder, number=3, started="1")
    real, reads = lease._newest, []

    def newest(where):
        found = real(where)
        if where == folder and not reads:
            (folder / "3.json").unlink()
            (folder / "5.json").write_text(lease._text(Owner(), 0))
        reads.append(found[0])
        return found

    monkeypatch.setattr(lease, "_newest", newest)
    with pytest.raises(RunError, match=f"another job trains here: process {owner.pid}"):
        acquire(folder, grace_s=0.1)
    assert reads[:2] == [3, 5] and files(folder) == ["5.json"]


def test_verify_detects_a_takeover_and_leaves_the_new_lease_unchanged(folder):
    owned = acquire(folder, heartbeat_s=60)
    owned.verify()
    other = write_lease(folder, number=2, **REMOTE)
    text = (folder / "2.json").read_text()
    owned.check()
    with pytest.raises(LeaseLost, match=f"has taken over this run: {re.escape(str(other))}. This process was stopped"):
        owned.verify()
    with pytest.raises(LeaseLost):
        owned.check()
    owned.release()
    assert (folder / "2.json").read_text() == text
    assert LeaseLost.exit_code == 1


def test_check_verifies_after_a_long_stop(folder, monkeypatch):
    owned = acquire(folder, heartbeat_s=60)
    write_lease(folder, number=2, **REMOTE)
    owned.check()
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    with pytest.raises(LeaseLost):
        owned.check()


def test_check_after_a_stop_waits_for_a_running_verification(folder, monkeypatch):
    """A stopped process continues: its lease thread has begun to verify when another thread is about to write."""
    owned, reading, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    real = lease._newest

    def newest(folder):
        reading.set()
        go.wait(30)
        return real(folder)

    monkeypatch.setattr(lease, "_newest", newest)
    write_lease(folder, number=2, **REMOTE)
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    owned._wake.set()
    assert reading.wait(30)
    threading.Timer(0.2, go.set).start()
    begin = time.monotonic()
    with pytest.raises(LeaseLost):
        owned.check()
    assert time.monotonic() - begin < lease.VERIFY_S  # it waits for that verification only, not for another


def test_verification_started_before_a_stop_is_repeated(folder, monkeypatch):
    owned, reading, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    real, moment = lease._newest, lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment)

    def newest(folder):
        found = real(folder)
        reading.set()
        go.wait(30)
        return found

    monkeypatch.setattr(lease, "_newest", newest)
    owned._wake.set()
    assert reading.wait(30)
    write_lease(folder, number=2, **REMOTE)
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    go.set()
    end = time.monotonic() + 30
    while owned._started != owned._finished:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(LeaseLost):
        owned.check()


def test_verify_waits_again_if_the_process_was_stopped_meanwhile(folder, monkeypatch):
    owned, go, main = acquire(folder, heartbeat_s=60), threading.Event(), threading.current_thread()
    real, moment, calls = lease._newest, lease._boottime(), []

    def newest(folder):
        go.wait(30)
        return real(folder)

    def boottime():
        if threading.current_thread() is main:
            calls.append(True)
            if len(calls) == 2:  # the first wait is over, and this process was stopped meanwhile
                monkeypatch.setattr(lease, "VERIFY_S", 30.0)
                go.set()
        return moment + 100 * (len(calls) > 1)

    monkeypatch.setattr(lease, "_newest", newest)
    monkeypatch.setattr(lease, "_boottime", boottime)
    monkeypatch.setattr(lease, "VERIFY_S", 0.2)
    write_lease(folder, number=2, **REMOTE)
    with pytest.raises(LeaseLost):
        owned.verify()


def test_verification_with_a_read_error_is_not_a_success(folder, monkeypatch):
    owned, reading = acquire(folder, heartbeat_s=60), threading.Event()
    real, moment = lease._newest, lease._boottime()

    def fail(folder):
        reading.set()
        raise OSError

    monkeypatch.setattr(lease, "_newest", fail)
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    owned._wake.set()
    assert reading.wait(30)
    end = time.monotonic() + 30
    while owned._started != owned._finished:
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.setattr(lease, "_newest", real)
    write_lease(folder, number=2, **REMOTE)
    with pytest.raises(LeaseLost):
        owned.check()


def test_hanging_storage_does_not_block_check(folder, monkeypatch):
    owned, hangs, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    monkeypatch.setattr(lease, "VERIFY_S", 0.2)

    def hang(folder):
        hangs.set()
        go.wait(30)
        raise OSError

    monkeypatch.setattr(lease, "_newest", hang)
    begin = time.monotonic()
    owned.verify()
    assert hangs.is_set() and 0.2 <= time.monotonic() - begin < 10
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + 1000)
    begin = time.monotonic()
    for _ in range(1000):
        owned.check()
    assert time.monotonic() - begin < 10
    go.set()
    owned.release()


def test_lease_is_lost_if_its_directory_was_replaced(folder, tmp_path):
    owned = acquire(folder, heartbeat_s=60)
    folder.rename(tmp_path / "moved")
    other = write_lease(folder, number=1, **REMOTE)
    with pytest.raises(LeaseLost, match=re.escape(other.since)):
        owned.verify()


@pytest.mark.parametrize("what", ["moved", "removed"])
def test_run_directory_that_is_moved_or_removed_ends_the_run_for_good(what, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    owned = acquire(run / "lease", heartbeat_s=60)
    if what == "moved":
        run.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(run)
    with pytest.raises(DirectoryGone, match=f"{run}: the run directory was {what}") as raised:
        owned.verify()
    assert raised.value.exit_code == ExitStatus.STOP
    with pytest.raises(DirectoryGone):
        owned.replace_text(run / "status.json", "")
    assert not run.exists()


def test_run_directory_that_is_back_within_a_second_is_no_error(folder, tmp_path, monkeypatch):
    owned = acquire(folder, heartbeat_s=60)
    folder.rename(tmp_path / "moved")
    monkeypatch.setattr(time, "sleep", lambda seconds: (tmp_path / "moved").rename(folder))
    owned.verify()
    monkeypatch.undo()
    owned.verify()
    owned.release()


def test_storage_that_answers_with_errors_is_not_taken_for_a_removed_directory(folder, monkeypatch):
    owned = acquire(folder, heartbeat_s=60)

    def fail(path):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(os, "listdir", fail)
    owned.verify()
    monkeypatch.undo()
    owned.verify()
    owned.release()


def test_acquire_names_a_lease_that_is_no_file(folder):
    folder.mkdir(exist_ok=True)
    os.mkfifo(folder / "1.json")
    with pytest.raises(RunError, match=r"lease/1.json: it is not a regular file, but it should name the job"):
        acquire(folder)


def test_acquire_raises_for_an_unwritable_directory(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        acquire(tmp_path / "missing" / "lease")
