import errno
import json
import math
import os
import struct
import subprocess
import sys
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue], made at import

from engine.base.errors import ConvoyError, RunError
from engine.metrics.results import Bins, Curve, Image
from engine.observe import tensorboard as tensorboard_module
from engine.observe.writer import MetricWriter
from engine.run.lease import Lease, LeaseLost


def make_row(step: int, attempt: int = 1, **values: Any) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "time": 1_700_000_000.25, **values}


HELDOUT: Any = {"heldout/accuracy": 0.9}


def lines_of(path):
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in path.read_text().splitlines()]


def events_of(directory):
    """Returns (step, time, {tag: value}) of every event in the files, read like TensorBoard does."""
    found = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.summary.value:
                values = {value.tag: value.simple_value for value in event.summary.value}
                found.append((event.step, event.wall_time, values))
    return found


def test_rows_are_written_in_push_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path, None) as writer:
        writer.push(lambda: [make_row(1, loss=jnp.float32(0.5)), make_row(2, loss=np.float32(0.25))])
        writer.push(lambda: [make_row(2, **HELDOUT)])
    assert lines_of(path) == [make_row(1, loss=0.5), make_row(2, loss=0.25), make_row(2, **HELDOUT)]


def test_results_of_evaluations_are_written_as_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve, bins = Curve(np.arange(2), np.ones(2), "recall", "precision"), Bins(np.arange(2), np.array([3]))
    results = {"a/vector": np.array([1.5, np.nan]), "a/curve": curve, "a/bins": bins, "a/image": Image(np.eye(2))}
    with MetricWriter(path, None) as writer:
        writer.push(lambda: [make_row(1, **results)])
    (row,) = lines_of(path)
    assert row.pop("a/vector") == [1.5, "NaN"]
    assert row.pop("a/curve") == {"recall": [0, 1], "precision": [1, 1]}
    assert row.pop("a/bins") == {"edges": [0, 1], "counts": [3]}
    assert row == make_row(1)


def test_push_does_not_wait_for_the_block(tmp_path):
    path, device_is_done = tmp_path / "metrics.jsonl", threading.Event()
    writer = MetricWriter(path, None)
    writer.push(lambda: [make_row(1)] if device_is_done.wait(60) else [])
    writer.push(lambda: [make_row(2)])
    assert path.read_text() == ""
    device_is_done.set()
    writer.flush()
    assert [row["step"] for row in lines_of(path)] == [1, 2]
    writer.close()


def test_block_without_rows_runs_in_order(tmp_path):
    path, seen = tmp_path / "metrics.jsonl", []
    with MetricWriter(path, None) as writer:
        writer.push(lambda: [make_row(1)])
        writer.push(lambda: seen.append(len(lines_of(path))))
    assert seen == [1]


def test_after_a_lost_lease_nothing_is_written_and_push_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_module, "_FLUSH_S", 1000.0)
    path, lost = tmp_path / "metrics.jsonl", threading.Event()

    class Lost(Lease):
        def check(self):
            if lost.is_set():
                raise LeaseLost("another job")

    writer = MetricWriter(path, tmp_path / "events", Lost())
    writer.push(lambda: [make_row(1, loss=0.5)])
    writer.flush()
    writer.push(lambda: [make_row(2, loss=0.25)])  # in the file at once, and for TensorBoard at its next flush
    written, ran = threading.Event(), []
    writer.push(written.set)
    assert written.wait(60)
    writer.push(lambda: lost.set() or [make_row(3)])  # lost while the block runs
    writer.push(lambda: ran.append(4) or [make_row(4)])
    with pytest.raises(LeaseLost, match="another job"):
        writer.flush()
    with pytest.raises(LeaseLost):
        writer.push(lambda: [make_row(5)])
    writer.close()
    assert (ran, lines_of(path)) == ([], [make_row(1, loss=0.5), make_row(2, loss=0.25)])
    assert [step for step, _, _ in events_of(tmp_path / "events")] == [1]


def test_full_queue_makes_push_wait_and_loses_nothing(tmp_path):
    path, disk_continues = tmp_path / "metrics.jsonl", threading.Event()
    writer = MetricWriter(path, None)

    def push_many():
        writer.push(lambda: [make_row(-1)] if disk_continues.wait(60) else [])
        for step in range(3000):
            writer.push(lambda step=step: [make_row(step)])

    loop = threading.Thread(target=push_many)
    loop.start()
    loop.join(0.3)
    assert loop.is_alive()
    disk_continues.set()
    loop.join(60)
    writer.close()
    assert [row["step"] for row in lines_of(path)] == list(range(-1, 3000))


def test_nan_and_infinity_are_written_as_text(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path, None) as writer:
        writer.push(lambda: [make_row(1, loss=float("nan"), norm=jnp.float32("inf"))])
    (row,) = lines_of(path)
    assert (row["loss"], row["norm"]) == ("NaN", "Infinity")


def test_tensorboard_gets_every_number_at_its_step(tmp_path):
    with MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as writer:
        writer.push(lambda: [make_row(1, loss=0.5, note="text", ok=True, per_class=np.ones(3))])
        writer.push(lambda: [make_row(2, loss=float("nan"), norm=jnp.float32(0.75), **HELDOUT)])
    first, second = events_of(tmp_path / "tensorboard")
    assert first == (1, 1_700_000_000.25, {"loss": 0.5})
    assert second[0] == 2 and math.isnan(second[2].pop("loss"))
    assert second[2] == pytest.approx({"heldout/accuracy": 0.9, "norm": 0.75})


def test_flush_writes_tensorboard_events_to_their_file(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    for step in (1, 2, 3):
        writer.push(lambda step=step: [make_row(step, loss=0.5)])
    writer.flush()
    assert [event[0] for event in events_of(tmp_path / "tensorboard")] == [1, 2, 3]
    writer.close()


def test_later_attempt_appends_lines_and_adds_an_event_file(tmp_path):
    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    code = "import sys, pathlib; from engine.observe.writer import MetricWriter\n"
    code += "with MetricWriter(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as writer:\n"
    code += "    writer.push(lambda: [dict(step=s, attempt=1, time=0.0, loss=0.5) for s in (1, 2, 3)])"
    subprocess.run([sys.executable, "-c", code, str(path), str(events)], check=True)
    with MetricWriter(path, events) as writer:
        writer.push(lambda: [make_row(3, attempt=2, loss=0.5)])
    assert [(row["step"], row["attempt"]) for row in lines_of(path)] == [(1, 1), (2, 1), (3, 1), (3, 2)]
    assert sorted(event[0] for event in events_of(events)) == [1, 2, 3, 3]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "x": "' + "a" * 10_000])
def test_torn_last_line_is_removed_on_open(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    for whole in ("", '{"step": 1}\n{"step": 2}\n'):
        path.write_text(whole + torn)
        with MetricWriter(path, None) as writer:
            writer.push(lambda: [make_row(3)])
        assert path.read_text().startswith(whole)
        assert lines_of(path)[-1] == make_row(3)
        assert len(lines_of(path)) == whole.count("\n") + 1


def test_sync_fsyncs_what_was_pushed_before(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "metrics.jsonl", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.read_text().count("\n")), fsync(file)))
    with MetricWriter(path, None) as writer:
        for step in (1, 2):
            writer.push(lambda step=step: [make_row(step)])
        writer.sync()
        writer.push(lambda: [make_row(3)])
    assert synced == [2]


def test_failing_fsync_is_warned_about_once(tmp_path, monkeypatch, caplog):
    def fails(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with MetricWriter(tmp_path / "metrics.jsonl", None) as writer:
        for step in (1, 2):
            writer.push(lambda step=step: [make_row(step)])
            writer.sync()
    assert caplog.text.count("cannot be written (Input/output error). They may be lost if this machine fails") == 1
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.faults
def test_lines_wait_in_memory_while_the_disk_is_full(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = MetricWriter(path, None)
    for step in (1, 2):
        writer.push(lambda step=step: [make_row(step)])
        writer.flush()
    assert caplog.text.count("metrics.jsonl: metrics cannot be written (No space left on device)") == 1
    path.unlink()
    assert writer._file is not None
    with open(path, "wb") as free:  # replaces the file that the writer has open
        os.dup2(free.fileno(), writer._file)
    writer.push(lambda: [make_row(3)])
    writer.close()
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3]


@pytest.mark.faults
def test_lines_lost_at_close_are_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = MetricWriter(path, None)
    writer.push(lambda: [make_row(1)])
    with pytest.raises(RunError, match=r"metrics\.jsonl: metrics cannot be written \(1 lines are lost\)") as error:
        writer.close()
    assert error.value.exit_code == 42
    writer.close()


@pytest.mark.faults
def test_tensorboard_write_error_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file, where a folder is needed")
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.push(lambda: [make_row(1)])
    writer.flush()
    (tmp_path / "tensorboard").unlink()
    writer.push(lambda: [make_row(2)])
    writer.close()
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 2
    assert caplog.text.count("tensorboard: metrics cannot be written (File exists)") == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_exception_of_a_block_reaches_the_loop_unchanged(tmp_path):
    def block():
        raise ZeroDivisionError("of the block")

    writer = MetricWriter(tmp_path / "metrics.jsonl", None)
    writer.push(block)
    with pytest.raises(ZeroDivisionError, match="of the block"):
        writer.flush()
    writer.close()


def test_queued_blocks_do_not_run_after_an_error(tmp_path):
    both_wait, ran = threading.Event(), []
    writer = MetricWriter(tmp_path / "metrics.jsonl", None)
    writer.push(lambda: [make_row(1, wrong=object())] if both_wait.wait(60) else [])
    writer.push(lambda: ran.append("after the error"))
    both_wait.set()
    with pytest.raises(RunError, match="wrong: a object cannot be written"):
        writer.close()
    assert ran == []


def test_value_that_json_cannot_hold_is_named(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", None)
    writer.push(lambda: [make_row(1, loss={1, 2})])
    with pytest.raises(RunError, match="loss: a set cannot be written as JSON"):
        writer.close()


def test_file_that_cannot_be_opened_is_reported_at_once(tmp_path):
    with pytest.raises(RunError, match=r"gone/metrics\.jsonl: metrics cannot be written \(No such file"):
        MetricWriter(tmp_path / "gone" / "metrics.jsonl", None)


def test_push_after_close_raises(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", None)
    writer.close()
    writer.flush()
    with pytest.raises(ConvoyError, match="the writer is closed"):
        writer.push(lambda: [make_row(1)])


def test_importing_the_writer_loads_neither_jax_nor_tensorboard():
    code = "import sys, engine.observe.writer; sys.exit(bool({'jax', 'tensorboardX'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_writer_without_a_file_runs_blocks_and_writes_nothing(tmp_path, monkeypatch):
    """As in a process other than the primary: blocks run, but their rows are not written."""
    monkeypatch.chdir(tmp_path)
    ran = []
    with MetricWriter(None, None) as writer:
        for step in range(3):
            writer.push(lambda step=step: ran.append(step) or [make_row(step)])
        writer.flush()
        assert ran == [0, 1, 2]
    with pytest.raises(RunError, match="metrics: the writer is closed"):
        writer.push(lambda: None)
    assert list(tmp_path.iterdir()) == []
