"""The lineage of a run in its report: both directions, what is unknown, and how far was searched."""

import shutil

import pytest

from engine.report import lineage
from engine.report.lineage import lineages
from engine.storage import mounts
from tests.lineage.made import data, made_file, run, weights


@pytest.fixture
def folder(tmp_path):
    """A dataset -> base -> child -> predictions; another parent of the child is gone."""
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data()])
    base, gone = run(tmp_path / "base", [data(out)]), run(tmp_path / "gone")
    child = run(tmp_path / "child", [weights(base, "init"), weights(gone, "init.sources.head"), data(out)])
    made_file(tmp_path / "p.npz", "predictions", [weights(child)])
    shutil.rmtree(gone)
    return tmp_path


def shown(nodes) -> list:
    return [(node["kind"], node["role"], node["name"], shown(node["nodes"])) for node in nodes]


def test_lineage_has_both_directions_and_marks_what_is_unknown(folder):
    child, base = lineages([folder / "child", folder / "base"])
    dataset = ("dataset", "written", "a.arrayrecord", [("data", "data", "tests.zoo.source", [])])
    of_base = [("data", "data", "tests.zoo.source", [dataset])]
    assert shown(child["subject"]["nodes"])[:2] == [
        ("run", "init", "base", of_base),
        ("unknown", "init.sources.head", "gone", []),
    ]
    assert [node["isUnknown"] for node in child["subject"]["nodes"]] == [False, True, False]
    assert shown(child["became"]) == [("predictions", "weights", "p.npz", [])]
    assert shown(base["became"]) == [("run", "init", "child", shown(child["became"]))]
    assert child["searched"] == f"{folder} was searched, which holds this run."


def test_search_that_takes_too_long_says_that_it_ended(folder):
    [found] = lineages([folder / "child"], seconds=1e-9)
    assert found["subject"]["nodes"] and found["became"] == []  # what it came from is looked up, not searched
    assert "was searched in part only" in found["searched"] and "convoy runs lineage" in found["searched"]


def test_nothing_is_searched_or_written_at_the_end_of_a_run(folder):
    [found] = lineages([folder / "child"], seconds=0)
    assert (found["became"], found["isSearched"]) == ([], False)
    assert [node["name"] for node in found["subject"]["nodes"]][:2] == ["base", "gone"]
    assert not list(folder.glob(".*.json"))


def test_copy_of_a_run_in_a_bucket_is_not_searched_below(folder, monkeypatch):
    monkeypatch.setattr(mounts, "_copies", {folder: "gs://bucket/runs"})
    [found] = lineages([folder / "child"])
    assert (found["became"], found["searched"]) == ([], "Not searched: this run is in a bucket that is not mounted.")


def test_large_trees_are_cut_and_counted(folder, monkeypatch):
    monkeypatch.setattr(lineage, "MOST", 1)
    [found] = lineages([folder / "base"])
    assert shown(found["became"]) == [("run", "init", "child", [])]
    assert found["more"] == [1 + 1, 1]


def test_damaged_record_is_a_problem_and_no_error(folder):
    (folder / "x.lineage.json").write_text("")
    (folder / "child/lineage.json").write_text("")
    [found] = lineages([folder / "child"])
    assert len(found["problems"]) == 2 and "child/lineage.json: cannot be read" in found["problems"][0]
