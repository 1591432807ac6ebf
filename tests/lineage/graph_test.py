"""A checkpoint is found by its content, whatever the names and places of runs."""

import shutil
from pathlib import Path

from engine.lineage.graph import Found, Graph
from engine.lineage.things import find_things
from engine.run.lineage import CHECKPOINT, Input
from tests.lineage.made import data, forget, made_file, run, weights


def parent(folder: Path, name: str = "child") -> Found:
    graph = Graph(folder, find_things(folder))
    thing = graph.at(folder / name)
    assert thing is not None
    return next(iter(graph.upstream(thing)))[1]


def test_moved_run_is_found_by_its_checkpoint_and_not_confused_with_the_run_at_its_old_path(tmp_path):
    base = run(tmp_path / "base")
    run(tmp_path / "child", [weights(base, "init")])
    assert parent(tmp_path).note == ""
    base.rename(tmp_path / "archive")
    run(tmp_path / "base", task__width=9)  # a new run of the same name
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "5")
    found = parent(tmp_path)
    assert found.thing is not None and found.thing.path == tmp_path / "archive" and found.sure
    assert found.note == f"moved from {base}"
    shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    assert parent(tmp_path).note == f"moved from {base}; copies in copy"


def test_run_whose_checkpoint_was_removed_is_only_assumed(tmp_path):
    base = run(tmp_path / "base")
    run(tmp_path / "child", [weights(base, "init")])
    shutil.rmtree(base / "checkpoints" / "5")
    found = parent(tmp_path)
    assert found.thing is not None and not found.sure
    assert found.note == "its checkpoint 5 is no longer there, so this may be another run"
    shutil.rmtree(base)
    assert parent(tmp_path) == Found(None, str(base), parent(tmp_path).note, sure=False)
    assert parent(tmp_path).note == "unknown: no run is found there, and none has this checkpoint"


def test_weights_of_another_program_have_unknown_data(tmp_path):
    run(
        tmp_path / "child",
        [Input(kind=CHECKPOINT, role="init", path="weights/model.safetensors", id="0123456789abcdef")],
    )
    assert parent(tmp_path).note == "weights of another program: their data is unknown" and not parent(tmp_path).sure


def test_run_outside_of_the_folder_is_found_at_its_path(tmp_path):
    base = run(tmp_path / "elsewhere" / "base")
    run(tmp_path / "runs" / "child", [weights(base, "init")])
    found = parent(tmp_path / "runs")
    assert found.thing is not None and found.thing.path == base and found.sure


def test_parent_that_only_the_config_names_is_found_by_its_path(tmp_path, monkeypatch):
    run(tmp_path / "runs" / "base")
    run(tmp_path / "runs" / "child", init__checkpoint="runs/base")
    for folder in (tmp_path, tmp_path / "runs"):
        found = parent(folder, "runs/child" if folder == tmp_path else "child")
        assert found.thing is not None and found.thing.path.name == "base" and not found.sure
        assert found.note == "found by its path alone: its content was not recorded"
    run(tmp_path / "other", [forget(weights(tmp_path / "runs" / "base", "init"))], init__checkpoint="gone")
    assert "found by its path alone" in parent(tmp_path, "other").note
    run(tmp_path / "third", init__checkpoint="gone/base")
    assert parent(tmp_path, "third").note == "unknown: no run is found there"


def test_dataset_is_found_by_its_identity(tmp_path):
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data()])
    run(tmp_path / "child", [data(out)])
    found = parent(tmp_path)
    assert found.thing is not None and found.thing.path == out and not found.note
    record, moved = tmp_path / "a.arrayrecord.lineage.json", tmp_path / "moved" / "b.arrayrecord.lineage.json"
    moved.parent.mkdir()
    record.rename(moved)
    found = parent(tmp_path)
    assert found.thing is not None and found.thing.path == tmp_path / "moved" / "b.arrayrecord"
    assert found.note == f"moved from {out}"
    moved.write_text(moved.read_text().replace('"id": "', '"id": "f'))
    assert parent(tmp_path).note == "unknown: no record is found there"
    moved.rename(record)
    assert parent(tmp_path).note == "unknown: the dataset there is another one"
