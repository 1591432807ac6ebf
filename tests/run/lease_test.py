"""One writer: who gets the lease of a directory, at once or after a look, and who has lost it."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time

import pytest

from engine.config.errors import RunError
from engine.run import lease
from engine.run.lease import LeaseLost, acquire
from engine.run.owner import TOKEN, Owner

QUICK = {"heartbeat_s": 0.02, "stale_s": 0.5, "grace_s": 0.2}
UNSEEN = {"boot": "another", "host": "elsewhere", "namespace": "pid:[1]", "pid": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lease"


def leave(folder, number=3, beat=7, **changes):
    """Writes the lease of another process; returns its owner."""
    owner = dataclasses.replace(Owner(), **changes)
    folder.mkdir(exist_ok=True)
    (folder / f"{number}.json").write_text(lease._text(owner, beat))
    return owner


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_free_directory_is_taken_and_given_back_at_once(folder):
    begin = time.monotonic()
    for number in (1, 2, 3):
        held = acquire(folder)
        assert (held.takeover, files(folder)) == ("", [f"{number}.json"])
        held.release()
    assert time.monotonic() - begin < 1


def test_the_file_names_the_owner_and_its_counter_moves(folder):
    held = acquire(folder, **QUICK)
    found = json.loads(held.path.read_text())
    assert (found["pid"], found["id"]) == (held.owner.pid, held.owner.id)
    end = time.monotonic() + 30
    while json.loads(held.path.read_text())["beat"].strip() in ("0", found["beat"].strip()):
        assert time.monotonic() < end
        time.sleep(0.01)
    held.release()
    assert json.loads(held.path.read_text())["beat"].strip() == "released"
    held.release()


def test_a_second_job_is_refused_with_the_owner_and_what_to_do(folder):
    held = acquire(folder)
    with pytest.raises(RunError) as error:
        acquire(folder, grace_s=0.1)
    assert str(error.value) == (
        f"{folder.parent}: another job trains here: process {held.owner.pid} on host {held.owner.host}, since "
        f"{held.owner.since}. Two jobs would mix up one run. Wait for its end or stop it (kill {held.owner.pid}), "
        "then start again; or name another --workdir=DIR."
    )
    held.check()
    held.release()


def test_a_job_that_is_about_to_end_is_waited_for(folder):
    held = acquire(folder)
    threading.Timer(0.3, held.release).start()
    after = acquire(folder)
    assert after.takeover == ""
    after.release()


def test_a_token_takes_over_what_cannot_be_seen_and_not_what_is_seen_to_live(folder, monkeypatch):
    monkeypatch.setenv(TOKEN, "job-7")
    before = leave(folder, token="job-7", **UNSEEN)
    begin = time.monotonic()
    held = acquire(folder)
    assert time.monotonic() - begin < 1
    assert held.takeover == f"{before} was an earlier start of this job; going on in its place"
    with pytest.raises(RunError, match="another job trains here"):
        acquire(folder, grace_s=0.1)
    held.release()


def test_without_a_token_there_is_no_earlier_start(folder):
    leave(folder, token="", **UNSEEN)
    held = acquire(folder, **QUICK)
    assert "has not moved its lease" in held.takeover
    held.release()


def test_a_dead_process_of_this_host_is_followed_at_once(folder):
    before = leave(folder, started="1")
    begin = time.monotonic()
    held = acquire(folder)
    assert time.monotonic() - begin < 1
    assert held.takeover == f"{before} has left this run without an end; going on in its place"
    assert files(folder) == ["4.json"]
    held.release()


def test_a_counter_that_does_not_move_is_stale_by_the_observers_clock_alone(folder, capsys):
    """The wall clock of the other host is an hour ahead; nobody looks at it."""
    before = leave(folder, since="2999-01-01T00:00:00.000+00:00", **UNSEEN)
    begin = time.monotonic()
    held = acquire(folder, **QUICK)
    assert time.monotonic() - begin >= 0.5
    assert held.takeover == f"{before} has not moved its lease of this run for 0.5 s; going on in its place"
    assert f"held by {before}; looking for 0.5 s whether it still lives" in capsys.readouterr().err
    held.release()


def test_a_counter_that_moves_belongs_to_a_job_that_lives(folder):
    leave(folder, beat=7, **UNSEEN)
    threading.Timer(0.3, lambda: leave(folder, beat=8, **UNSEEN)).start()
    with pytest.raises(RunError, match=r"another job trains here: process 1 on host elsewhere.* or stop it, then"):
        acquire(folder, stale_s=30)


def test_a_lease_that_was_killed_while_it_was_written_is_stale_in_time(folder):
    folder.mkdir()
    (folder / "1.json").write_text("")
    held = acquire(folder, **QUICK)
    assert held.takeover.startswith("a process that has not written its name has not moved its lease")
    held.release()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_the_same_moment_one_wins(tmp_path, stale):
    """Processes that begin together, at a new directory and at one whose owner is gone."""
    program = (
        "import os, sys; from pathlib import Path; from engine.run.lease import acquire\n"
        "from engine.config.errors import RunError\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]): pass\n"
        "try: held = acquire(Path(sys.argv[1]), grace_s=0.3); print('won', flush=True)\n"
        "except RunError as error: print(str(error).split(':')[1].strip(), flush=True)\n"
        "input()"
    )
    folder, go = tmp_path / "lease", tmp_path / "go"
    if stale:
        leave(folder, started="1")
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
        told = sorted(job.stdout.readline() for job in jobs)
        for job in jobs:
            job.kill()
    assert told == [b"another job trains here\n"] * 5 + [b"won\n"]


def test_one_who_looked_a_moment_ago_withdraws(folder, monkeypatch):
    """Between its look and its claim, others took the lease and went on."""
    owner = leave(folder, number=3, started="1")
    real, looks = lease._newest, []

    def newest(where):
        found = real(where)
        if where == folder and not looks:
            (folder / "3.json").unlink()
            (folder / "5.json").write_text(lease._text(Owner(), 0))
        looks.append(found[0])
        return found

    monkeypatch.setattr(lease, "_newest", newest)
    with pytest.raises(RunError, match=f"another job trains here: process {owner.pid}"):
        acquire(folder, grace_s=0.1)
    assert looks[:2] == [3, 5] and files(folder) == ["5.json"]


def test_a_lease_that_another_took_is_lost_at_the_next_look_and_left_alone(folder):
    held = acquire(folder, heartbeat_s=60)
    held.verify()
    other = leave(folder, number=2, **UNSEEN)
    text = (folder / "2.json").read_text()
    held.check()
    with pytest.raises(LeaseLost, match=f"has taken over this run: {re.escape(str(other))}. This process was stopped"):
        held.verify()
    with pytest.raises(LeaseLost):
        held.check()
    held.release()
    assert (folder / "2.json").read_text() == text
    assert LeaseLost.exit_code == 1


def test_a_process_that_was_stopped_for_long_looks_before_it_goes_on(folder, monkeypatch):
    held = acquire(folder, heartbeat_s=60)
    leave(folder, number=2, **UNSEEN)
    held.check()
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    with pytest.raises(LeaseLost):
        held.check()


def test_whoever_wakes_first_waits_for_the_look_that_is_under_way(folder, monkeypatch):
    """A stopped process wakes, and its thread has begun to look when another one is about to write."""
    held, looks, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    real = lease._newest

    def newest(folder):
        looks.set()
        go.wait(30)
        return real(folder)

    monkeypatch.setattr(lease, "_newest", newest)
    leave(folder, number=2, **UNSEEN)
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    held._wake.set()
    assert looks.wait(30)
    threading.Timer(0.2, go.set).start()
    begin = time.monotonic()
    with pytest.raises(LeaseLost):
        held.check()
    assert time.monotonic() - begin < lease.VERIFY_S  # it waits for that look only: there is none after it


def test_a_look_that_was_stopped_halfway_tells_nothing_of_what_came_since(folder, monkeypatch):
    held, looks, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    real, moment = lease._newest, lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment)

    def newest(folder):
        found = real(folder)
        looks.set()
        go.wait(30)
        return found

    monkeypatch.setattr(lease, "_newest", newest)
    held._wake.set()
    assert looks.wait(30)
    leave(folder, number=2, **UNSEEN)
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    go.set()
    end = time.monotonic() + 30
    while held._started != held._finished:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(LeaseLost):
        held.check()


def test_a_process_that_is_stopped_while_it_waits_for_a_look_waits_for_it_all_the_same(folder, monkeypatch):
    held, go, main = acquire(folder, heartbeat_s=60), threading.Event(), threading.current_thread()
    real, moment, asked = lease._newest, lease._boottime(), []

    def newest(folder):
        go.wait(30)
        return real(folder)

    def boottime():
        if threading.current_thread() is main:
            asked.append(True)
            if len(asked) == 2:  # the first wait is over, and this process was stopped meanwhile
                monkeypatch.setattr(lease, "VERIFY_S", 30.0)
                go.set()
        return moment + 100 * (len(asked) > 1)

    monkeypatch.setattr(lease, "_newest", newest)
    monkeypatch.setattr(lease, "_boottime", boottime)
    monkeypatch.setattr(lease, "VERIFY_S", 0.2)
    leave(folder, number=2, **UNSEEN)
    with pytest.raises(LeaseLost):
        held.verify()


def test_a_look_that_failed_is_none(folder, monkeypatch):
    held, looks = acquire(folder, heartbeat_s=60), threading.Event()
    real, moment = lease._newest, lease._boottime()

    def fail(folder):
        looks.set()
        raise OSError

    monkeypatch.setattr(lease, "_newest", fail)
    monkeypatch.setattr(lease, "_boottime", lambda: moment + lease.STALE_S)
    held._wake.set()
    assert looks.wait(30)
    end = time.monotonic() + 30
    while held._started != held._finished:
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.setattr(lease, "_newest", real)
    leave(folder, number=2, **UNSEEN)
    with pytest.raises(LeaseLost):
        held.check()


def test_storage_that_hangs_holds_up_no_check(folder, monkeypatch):
    held, hangs, go = acquire(folder, heartbeat_s=60), threading.Event(), threading.Event()
    monkeypatch.setattr(lease, "VERIFY_S", 0.2)

    def hang(folder):
        hangs.set()
        go.wait(30)
        raise OSError

    monkeypatch.setattr(lease, "_newest", hang)
    begin = time.monotonic()
    held.verify()
    assert hangs.is_set() and 0.2 <= time.monotonic() - begin < 10
    moment = lease._boottime()
    monkeypatch.setattr(lease, "_boottime", lambda: moment + 1000)
    begin = time.monotonic()
    for _ in range(1000):
        held.check()
    assert time.monotonic() - begin < 10
    go.set()
    held.release()


def test_a_lease_of_a_directory_that_was_replaced_is_lost(folder, tmp_path):
    held = acquire(folder, heartbeat_s=60)
    folder.rename(tmp_path / "moved")
    held.verify()  # gone as a whole, as an unmounted disk: nobody took it
    other = leave(folder, number=1, **UNSEEN)
    with pytest.raises(LeaseLost, match=re.escape(other.since)):
        held.verify()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        acquire(tmp_path / "missing" / "lease")
