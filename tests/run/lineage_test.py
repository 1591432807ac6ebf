"""Records of lineage are read as they were written, or refused with a reason."""

import gzip
import json
import os

import pytest

from engine.base import json_text
from engine.run import lineage
from engine.run.directory import RunDirectory
from engine.run.lineage import CHECKPOINT, DATA, Input, Names, Record

WEIGHTS = Input(kind=CHECKPOINT, role="init", path="/runs/base", step=7, id="ab" * 16)
SCANS = Input(kind=DATA, role="data", id="64 scans", examples="64", settings={"limit": "8"}, datasets=("d1",))


def record(**values) -> Record:
    return Record(kind="run", inputs=(WEIGHTS, SCANS), **values)


def test_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "lineage.json"
    path.write_text(record(examples=3, dirty=None, packages={"jax": "1"}).to_text())
    found = lineage.read(path)
    assert found is not None and found.to_text() == path.read_text()
    assert found.inputs[0] == WEIGHTS and found.inputs[1].settings == {"limit": "8"}
    assert lineage.read(tmp_path / "missing.json") is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:-20], "delimiter|Expecting|Unterminated"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "it has version 2, and this Convoy reads up to 1"),
        (lambda text: text.replace('"step": 7', '"step": "7"'), r"inputs\[0\]\.step: found \"7\""),
        (lambda text: text.replace('"kind": "run"', '"kind": "car"'), "kind: found"),
        (lambda text: "[]", "expected an object"),
    ],
)
def test_damaged_record_is_refused_with_a_reason(tmp_path, change, why):
    (tmp_path / "a").write_text(change(record().to_text()))
    with pytest.raises(ValueError, match=why):
        lineage.read(tmp_path / "a")


def test_link_to_nothing_is_no_missing_record(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="a link to nothing"):
        lineage.read(tmp_path / "a")


def test_names_are_read_as_they_were_written_and_equal_names_give_equal_bytes(tmp_path):
    names = Names({"/b": (3, "ff"), "/a\udce9": (-1, "")}, {"scene": ["x", "y"]}, {"token": 9})
    lineage.write_names(tmp_path / "1", {"data@1": names})
    lineage.write_names(tmp_path / "2", {"data@1": Names(dict(reversed(names.files.items())), **_rest(names))})
    assert lineage.read_names(tmp_path / "1") == {"data@1": names}
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert lineage.read_names(tmp_path / "missing") == {}


def _rest(names: Names) -> dict:
    return {"values": names.values, "omitted": names.omitted}


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"{}"), gzip.compress(b'{"version": 9}')])
def test_damaged_names_are_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        lineage.read_names(tmp_path / "a")
    uneven = dict(files=["/a"], sizes=[], hashes=[""], values={}, omitted={})
    (tmp_path / "a").write_bytes(gzip.compress(json.dumps({"version": 1, "data": {"x": uneven}}).encode()))
    with pytest.raises(json_text.Damaged, match="different lengths"):
        lineage.read_names(tmp_path / "a")
    lineage.write_names(tmp_path / "b", {"x": Names({f"/{n}": (n, "") for n in range(99)})})
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-30])
    with pytest.raises(json_text.Damaged, match="it is cut or damaged"):
        lineage.read_names(tmp_path / "b")


def test_too_many_names_are_counted(monkeypatch):
    monkeypatch.setattr(lineage, "MOST_NAMES", 3)
    found = Names()
    found.add_values("scene", ["a", "b", "a"])
    found.add(Names({}, {"scene": ["c"], "token": list("abcd")}))
    assert (found.values, found.omitted) == ({"scene": ["a", "b", "c"]}, {"token": 4})
    found.add_values("scene", ["d"])
    assert (found.values, found.omitted) == ({}, {"token": 4, "scene": 4})
    found.add_values("scene", ["e"])
    found.add(Names({}, {"name": ["f"]}))
    found.add(Names({}, {}, {"name": 9}))
    assert (found.values, found.omitted) == ({}, {"token": 4, "scene": 4, "name": 9})


def test_names_of_examples_are_collected_up_to_the_number_that_is_kept(monkeypatch):
    monkeypatch.setattr(lineage, "MOST_NAMES", 3)
    found: dict[str, set[str]] = {}
    for value in "aabbcdefg":
        lineage.collect(found, "scene", [value])
    assert found == {"scene": set("abcd")}


def test_record_of_a_shard_is_that_of_its_dataset(tmp_path):
    shard = tmp_path / "a-00003-of-00016.arrayrecord"
    assert lineage.record_path(shard) == tmp_path / "a.arrayrecord.lineage.json"
    assert lineage.record_path(tmp_path) == tmp_path.with_name(f"{tmp_path.name}.lineage.json")
    assert lineage.names_path(tmp_path / "a.arrayrecord.lineage.json") == tmp_path / "a.arrayrecord.names.json.gz"
    assert lineage.names_path(tmp_path / "lineage.json") == tmp_path / "names.json.gz"


def test_record_of_a_run_grows_and_its_names_follow(tmp_path):
    with RunDirectory.open(tmp_path / "run") as directory:
        lineage.update_run(directory, [SCANS], {SCANS.key: lambda: Names({}, {"scene": ["x"]})})
        lineage.update_run(directory, [WEIGHTS])
        lineage.update_run(directory, [WEIGHTS, SCANS], {SCANS.key: lambda: pytest.fail("they are known")})
        before = (directory.path / "lineage.json").read_text()
    found = lineage.read(tmp_path / "run" / "lineage.json")
    assert found is not None and [(one.role, one.attempt) for one in found.inputs] == [("init", 1), ("data", 1)]
    assert lineage.read_names(tmp_path / "run" / "names.json.gz").keys() == {SCANS.key}
    with RunDirectory.open(tmp_path / "run") as directory:
        lineage.update_run(directory, [], kept=lambda one: one.kind != DATA)
    assert lineage.read_names(tmp_path / "run" / "names.json.gz") == {}
    assert json.loads(before)["inputs"][0]["role"] == "init"


def test_damaged_record_of_a_run_is_kept_aside(tmp_path, capsys):
    with RunDirectory.open(tmp_path / "run") as directory:
        (tmp_path / "run" / "lineage.json").write_text("{")
        lineage.update_run(directory, [WEIGHTS])
    assert "lineage.json: damaged record of lineage, which begins anew" in capsys.readouterr().err
    assert [name for name in os.listdir(tmp_path / "run") if name.endswith(".damaged")]
    found = lineage.read(tmp_path / "run" / "lineage.json")
    assert found is not None and len(found.inputs) == 1
