"""The tree of a thing: both directions, each thing once, and nothing left out."""

import json
import os

import pytest

from engine.base.errors import RunError
from engine.lineage.tree import lineage_of, to_text
from engine.run.lineage import digest
from tests.lineage.made import data, forget, made_file, run, store_data, weights


@pytest.fixture
def folder(tmp_path):
    """dataset -> base -> child -> predictions and export; both runs read the dataset."""
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data(limit="8")])
    base = run(tmp_path / "base", [data(out), data(out, role="evaluations.heldout.data")])
    child = run(tmp_path / "child", [weights(base, "init"), data(out)])
    made_file(tmp_path / "p.npz", "predictions", [weights(child), data(out)])
    made_file(tmp_path / "w.safetensors", "export", [weights(child)])
    return tmp_path


def test_tree_has_both_directions_and_each_thing_once(folder):
    roles = ("data", "evaluations.heldout.data")
    trained, evaluated = (f"examples 64, content {digest(f'{role} content')}" for role in roles)
    assert to_text(lineage_of(folder / "child")).splitlines() == [
        "run child (state done at 5/5, code unknown)",
        "came from",
        "|- init: run base (step 5, state done at 5/5, code unknown)",
        f"|  |- data: tests.zoo.source ({trained})",
        "|  |  `- written: dataset a.arrayrecord (examples 3, code unknown)",
        f"|  |     `- data: tests.zoo.source ({trained}, limit 8)",
        f"|  `- evaluations.heldout.data: tests.zoo.source ({evaluated})",
        "|     `- written: dataset a.arrayrecord  [listed above]",
        f"`- data: tests.zoo.source ({trained})",
        "   `- written: dataset a.arrayrecord  [listed above]",
        "became",
        "|- weights: predictions p.npz (from step 5, examples 3, code unknown)",
        "`- weights: export w.safetensors (from step 5, examples 3, code unknown)",
    ]
    found = lineage_of(folder / "a.arrayrecord")
    assert [(node.role, node.name) for node in found.became] == [
        ("data, evaluations.heldout.data", "base"),
        ("data", "child"),
        ("data", "p.npz"),
    ]
    assert json.loads(found.to_json())["subject"]["nodes"][0]["details"]["limit"] == "8"


def test_below_widens_the_search(folder):
    assert lineage_of(folder / "p.npz", folder / "base").became == []
    late = made_file(folder.parent / f"{folder.name}-late" / "q.npz", "predictions", [weights(folder / "child")])
    assert [node.name for node in lineage_of(folder / "child", late.parent).became] == ["q.npz"]


def test_file_that_was_moved_without_its_record_is_found_by_its_content(folder):
    other = folder / "other" / "renamed.npz"
    other.parent.mkdir()
    (folder / "p.npz").rename(other)
    found = lineage_of(other, folder)
    assert found.subject.name == "p.npz" and "renamed.npz has the same content" in found.subject.note
    with pytest.raises(RunError, match=r"is no run and has no record of lineage \(renamed.npz.lineage.json\)"):
        lineage_of(other)


def test_cycle_of_runs_ends(tmp_path):
    first = run(tmp_path / "a", init__checkpoint=str(tmp_path / "b"))
    run(tmp_path / "b", init__checkpoint=str(first))
    text = to_text(lineage_of(first))
    assert text.count("a cycle: this is its own ancestor") == 2 and len(text.splitlines()) == 7


def test_missing_parents_damaged_records_and_links_are_named(tmp_path):
    gone = run(tmp_path / "gone")
    lost = weights(gone, "init")
    gone.rename(tmp_path.parent / f"{tmp_path.name}-gone")
    base = run(tmp_path / "real", [lost, forget(weights(tmp_path / "away", "init.sources.head"))])
    (tmp_path / "x.lineage.json").write_text("")
    os.symlink(base, tmp_path / "link")
    found = lineage_of(tmp_path / "link")
    assert [(node.kind, node.role, node.details) for node in found.subject.nodes] == [
        ("unknown", "init", {"step": "5"}),
        ("unknown", "init.sources.head", {}),
    ]
    assert found.subject.name == "real" and len(found.problems) == 1 and "x.lineage.json" in found.problems[0]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    one, two = run(tmp_path / "1" / "base"), run(tmp_path / "2" / "base")
    store_data(one, "c1")
    run(tmp_path / "child", [weights(two, "init")])
    assert lineage_of(two, tmp_path).became[0].name == "child" and lineage_of(one, tmp_path).became == []
    assert to_text(lineage_of(one, tmp_path)).endswith(f"became: nothing is found below {tmp_path}")
