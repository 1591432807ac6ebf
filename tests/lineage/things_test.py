"""Finding runs and files with records: also older, damaged and linked ones."""

import os

import pytest

from engine.lineage.things import find_things, thing_at
from engine.metrics.example_file import FOLDER
from engine.run.directory import PER_EXAMPLE
from tests.lineage.made import data, made_file, run, store_data, weights


def test_runs_and_files_are_found_at_any_depth(tmp_path):
    base = run(tmp_path / "runs" / "deep" / "base", [data()])
    made_file(tmp_path / "a" / "p.npz", "predictions", [weights(base), data()])
    made_file(base / "w.safetensors", "export", [weights(base)])
    made_file(base / "checkpoints" / "none.npz", "export", [weights(base)])  # no folder for files of users
    made_file(tmp_path / ".hidden" / "none.npz", "export", [weights(base)])
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink(base / "w.safetensors.lineage.json", tmp_path / "a" / "link.lineage.json")
    found = find_things(tmp_path)
    assert [(thing.kind, str(thing.path.relative_to(tmp_path))) for thing in found] == [
        ("predictions", "a/p.npz"),
        ("run", "runs/deep/base"),
        ("export", "runs/deep/base/w.safetensors"),
    ]


def test_older_run_has_the_inputs_that_its_other_files_name(tmp_path):
    old = run(tmp_path / "old", init__checkpoint="runs/base/checkpoints/300", data__seed=4)
    store_data(old, "abc")
    [thing] = find_things(tmp_path)
    [stored, parent] = thing.record.inputs
    assert (stored.id, stored.settings) == ("abc", {"target": "tests.zoo.source", "seed": "4"})
    assert (parent.role, parent.path, parent.step, parent.id) == ("init", "runs/base", 300, "")


@pytest.mark.parametrize("below", ["", "/per_example/train", "/per_example/train/45.parquet"])
def test_run_that_gave_the_weights_of_the_data_is_a_parent(below, tmp_path):
    run(tmp_path / "next", data__weights_from=f"runs/base{below}")
    [thing] = find_things(tmp_path)
    [parent] = thing.record.inputs
    assert (parent.role, parent.path) == ("data.weights_from", "runs/base")


def test_damaged_records_are_things_with_a_problem(tmp_path):
    damaged, base = tmp_path / "w.safetensors.lineage.json", run(tmp_path / "base", [data()])
    damaged.write_text("{")
    (base / "lineage.json").write_text('{"version": 7}')
    os.symlink(tmp_path / "gone", tmp_path / "x.lineage.json")
    base_thing, file, link = find_things(tmp_path)
    assert "base/lineage.json: cannot be read (it has version 7" in base_thing.problem
    assert (file.kind, file.path.name) == ("unknown", "w.safetensors")
    assert f"{damaged}: cannot be read" in file.problem and "link to nothing" in link.problem
    (base / "data.json").write_text("[")
    assert "data.json: cannot be read" in find_things(base)[0].problem


def test_shard_stands_for_its_dataset_and_a_link_for_its_file(tmp_path):
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data()])
    os.symlink(out, tmp_path / "link")
    for path in (out, tmp_path / "a-00001-of-00002.arrayrecord", tmp_path / "link"):
        thing = thing_at(path)
        assert thing is not None and thing.path == out
    assert thing_at(tmp_path) is None and thing_at(tmp_path / "gone") is None


def test_folder_of_metrics_of_examples_has_one_name():
    assert PER_EXAMPLE == FOLDER  # the packages `run` and `metrics` do not import each other
