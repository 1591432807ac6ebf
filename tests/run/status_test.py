import dataclasses
import json
import subprocess
import sys
import time
from datetime import datetime

import pytest

from engine.base.errors import RunError
from engine.run import lease, status
from engine.run.status import Status

ENDLESS_WRITER = """
import sys, pathlib
from engine.run import status
for step in range(10**9):
    metrics = {f"metric_{i}": step for i in range(2000)}
    status.write(pathlib.Path(sys.argv[1]), status.Status(state="training", step=step, metrics=metrics))
"""


def test_status_round_trip(tmp_path):
    path = tmp_path / "status.json"
    wrote = status.write(
        path, Status(state="done", step=7, total_steps=7, exit_code=0, metrics={"heldout/accuracy": 0.5}, attempt=2)
    )
    assert status.read(path) == wrote
    assert datetime.fromisoformat(wrote.started) <= datetime.fromisoformat(wrote.updated)


def test_file_is_plain_json(tmp_path):
    path = tmp_path / "status.json"
    status.write(
        path, Status(state="failed", step=3, reason="loss is NaN", exit_code=43, metrics={"loss": float("nan")})
    )
    fields = json.loads(path.read_text())
    assert (fields["state"], fields["step"], fields["reason"], fields["exit_code"]) == ("failed", 3, "loss is NaN", 43)
    assert fields["metrics"] == {"loss": "NaN"}
    assert fields["pid"] > 0 and fields["host"]


def test_replace_keeps_the_start_time(tmp_path):
    first = Status(state="starting")
    later = dataclasses.replace(first, state="training", step=10)
    assert later.started == first.started


def test_unknown_state_raises():
    with pytest.raises(RunError, match=r"state 'finished' is unknown. Allowed: starting, training, evaluating, done"):
        Status(state="finished")


def test_read_ignores_unknown_fields(tmp_path):
    path = tmp_path / "status.json"
    status.write(path, Status(state="done", step=3))
    path.write_text(json.dumps({**json.loads(path.read_text()), "goodput": 0.9}))
    assert status.read(path).step == 3


@pytest.mark.parametrize("text", ["", "[]", '{"state": "odd"}', '{"step": 3}', '{"state": "do'])
def test_invalid_status_file_error_names_the_file(tmp_path, text):
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"status\.json: is not the status of a run .* Remove this file"):
        status.read(path)


OWNER = """
import sys, time
from pathlib import Path
from engine.run import lease, status
run = Path(sys.argv[1])
lease.acquire(run / "lease")
status.write(run / "status.json", status.Status(state="training", step=7))
print(flush=True)
time.sleep(60)
"""


def test_attempt_without_an_end_is_stated_once_its_process_is_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline()
            assert status.missing_end(tmp_path / "status.json") == ""  # it is alive
        finally:
            owner.kill()
    text = status.complete_missing_end(tmp_path / "status.json")
    found = status.read(tmp_path / "status.json")
    assert (found.state, found.reason, found.exit_code, found.pid) == ("failed", text, 137, owner.pid)
    assert text.startswith(f"attempt 1 (process {owner.pid} on host ") and "without a verdict after step 7" in text
    status.write(tmp_path / "status.json", status.Status(state="done", pid=owner.pid))
    assert status.missing_end(tmp_path / "status.json") == ""
    assert lease.current_owner(tmp_path / "lease") is None  # the lease was released
    (next((tmp_path / "lease").iterdir())).unlink()
    status.write(tmp_path / "status.json", status.Status(state="training", pid=owner.pid))
    assert status.missing_end(tmp_path / "status.json") == ""  # a copy without its lease


def test_missing_status_file_raises(tmp_path):
    with pytest.raises(RunError, match=r"status\.json: file not found, so no run was started here"):
        status.read(tmp_path / "status.json")


@pytest.mark.faults
def test_reader_never_sees_a_partial_file_even_if_the_writer_is_killed(tmp_path):
    path = tmp_path / "status.json"
    deadline = time.monotonic() + 180
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(path)]) as writer:
            try:
                seen: set[int] = set()
                while len(seen) < 15:
                    assert time.monotonic() < deadline and writer.poll() is None
                    if path.exists():
                        seen.add(read_complete(path))
            finally:
                writer.kill()
        assert read_complete(path) >= max(seen)
        path.unlink()


def read_complete(path) -> int:
    found = status.read(path)
    assert len(found.metrics) == 2000 and set(found.metrics.values()) == {found.step}
    return found.step
