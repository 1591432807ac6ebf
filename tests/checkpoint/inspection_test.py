"""Every checkpoint of a run has its line; one that is damaged is named, and the end says so."""

import jax.numpy as jnp
import pytest

from engine.checkpoint import inspection
from engine.checkpoint.inspection import DamagedCheckpoints, inspect
from engine.checkpoint.restore_latest import restore_latest
from engine.checkpoint.store import CheckpointStore
from engine.cluster.exit_status import ExitStatus


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (2, 10):
        store.save(step, {"w": jnp.ones(4)}, {"next_batch": step}, "")
    store.wait()
    yield store
    store.close()


def test_a_line_for_each_step_that_is_good(store):
    lines = []
    inspect(store.directory, lines.append)
    assert [line.split()[:3] for line in lines] == [["step", "2", "good"], ["step", "10", "good"]]
    assert all("files, 0.0 MiB" in line for line in lines)


def test_what_is_damaged_or_was_set_aside_is_named_and_nothing_is_changed(store):
    for step in (2, 10):
        (store.directory / str(step) / "config" / "config.json").unlink()
    lines, before = [], sorted(store.directory.rglob("*"))
    with pytest.raises(DamagedCheckpoints, match="2 of 2 checkpoints are damaged") as error:
        inspect(store.directory, lines.append)
    assert error.value.exit_code == ExitStatus.STOP
    assert lines[1].startswith("step       10  DAMAGED  config/config.json: is missing, expected")
    assert sorted(store.directory.rglob("*")) == before
    with pytest.raises(Exception, match="no checkpoint can be used"):
        restore_latest(store, {"w": jnp.ones(4)})
    lines.clear()
    inspect(store.directory, lines.append)
    assert [line.split(":")[0].strip() for line in lines] == [
        "10.bad  set aside by an earlier start",
        "2.bad  set aside by an earlier start",
    ]


def test_says_how_far_it_is(store, monkeypatch):
    monkeypatch.setattr(inspection, "_TELL_S", 0.0)
    told = []
    inspect(store.directory, lambda line: None, told.append)
    assert told[-1] == "step 10: 0.00 of 0.00 GiB"
