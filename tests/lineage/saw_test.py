"""Who saw a log: by file, group, key and content; what is not known is said."""

import json

import pytest

from engine.lineage import saw
from engine.lineage.saw import CANNOT_TELL, MAYBE, NOT, SAW, who_saw
from engine.lineage.tree import lineage_of, to_text
from engine.readers.files import sample_hash, sampled_files
from engine.run.lineage import Input, Names
from tests.lineage.made import NO_NAMES, data, forget, made_file, record, run, weights

HELD = Names({"/logs/day1/a.mcap": (7, ""), "/logs/b.mcap": (9, "")}, {"scene": ["s1", "s2"], "token": ["s1/004"]})


@pytest.fixture
def folder(tmp_path):
    """A run that saw the log, one that saw another, and what came from them."""
    base = run(tmp_path / "base", [data()], {"data": HELD})
    child = run(tmp_path / "child", [weights(base, "init"), data()], {"data": Names({}, {"scene": ["s9"]})})
    made_file(tmp_path / "w.safetensors", "export", [weights(child)])
    run(tmp_path / "other", [data()], {"data": Names({"/logs/z.mcap": (3, "")}, {"scene": ["s7"], "token": ["s7/1"]})})
    return tmp_path


def answers(query, folder) -> dict[str, str]:
    return {one.path: one.answer for one in who_saw(query, folder).answers}


@pytest.mark.parametrize(
    "query", ["s1", "s1/004", "004", "/logs/day1/a.mcap", "a.mcap", "day1", "/logs/day1/", "b.mcap"]
)
def test_file_group_and_key_are_found_and_inherited(folder, query):
    assert answers(query, folder) == {"base": SAW, "child": SAW, "w.safetensors": SAW, "other": NOT}
    found = who_saw(query, folder)
    assert not found.is_clear and [one.answer for one in found.answers] == [SAW, SAW, SAW, NOT]
    assert any("through run base" in reason for one in found.answers for reason in one.reasons)


@pytest.mark.parametrize("query", ["s", "s1/00", "a.mca", "og", "s1/004/"])
def test_parts_of_names_do_not_match(folder, query):
    assert SAW not in answers(query.rstrip("/") + "x", folder).values()


def test_name_that_nothing_has_is_clear_and_says_what_was_searched(folder):
    found = who_saw("s8", folder)
    assert found.is_clear and set(answers("s8", folder).values()) == {NOT}
    assert "s8 is no name of a dataset there" in saw.to_text(found)
    assert "Names were recorded of: file, scene, token." in saw.to_text(found)
    assert json.loads(found.to_json())["clear"] is True


def test_data_without_names_or_without_this_kind_of_names_cannot_tell(folder):
    run(folder / "old", [data()])
    run(folder / "files", [data()], {"data": Names({"/x": (1, "")})})
    run(folder / "many", [data()], {"data": Names({"/x": (1, "")}, {}, {"scene": 10**7})})
    made_file(folder / "nothing.npz", "predictions", [])
    found = {one.path: one for one in who_saw("s1", folder).answers}
    for name in ("old", "files", "many", "nothing.npz"):
        assert found[name].answer == CANNOT_TELL
    assert found["old"].reasons == ["data: no names were recorded of this data"]
    assert found["files"].reasons == ["data: no name of the kind scene or token was recorded of it"]
    assert found["many"].reasons == ["data: not all names were recorded (10,000,000 of scene)"]
    assert answers("/logs/b.mcap", folder)["files"] == NOT
    assert not who_saw("s8", folder).is_clear


def test_missing_and_doubtful_parents_are_no_proof(folder):
    gone = run(folder / "gone", [data()], {"data": HELD})
    orphan = run(folder / "orphan", [weights(gone, "init"), data()], {"data": Names({}, {"scene": ["s9"]})})
    run(folder / "assumed", [forget(weights(folder / "other", "init"))])
    run(folder / "assumed2", [forget(weights(folder / "base", "init"))])
    gone.rename(folder.parent / f"{folder.name}-gone")
    found = {one.path: one for one in who_saw("s1", folder).answers}
    assert found["orphan"].answer == CANNOT_TELL and "unknown run" in found["orphan"].reasons[0]
    assert (found["assumed"].answer, found["assumed2"].answer) == (CANNOT_TELL, MAYBE)
    assert orphan.exists()


def test_file_is_found_by_its_content_under_another_name(tmp_path):
    log = tmp_path / "renamed.mcap"
    log.write_bytes(b"log" * 99)
    size, text = 297, sample_hash(str(log))
    run(tmp_path / "hashed", [data()], {"data": Names({"/logs/a.mcap": (size, text)})})
    run(tmp_path / "size", [data()], {"data": Names({"/logs/a.mcap": (size, "")})})
    run(tmp_path / "not", [data()], {"data": Names({"/logs/a.mcap": (5, "")})})
    [part] = sampled_files([str(log)])
    one = Input(kind="data", role="data", id=f"{part.replace('renamed', 'a')}; records 12")
    record(run(tmp_path / "sampled") / "lineage.json", saw_record(one), {"data": NO_NAMES})
    assert answers(str(log), tmp_path) == {"hashed": SAW, "sampled": SAW, "size": MAYBE, "not": NOT}
    reasons = {one.path: one.reasons[0] for one in who_saw(str(log), tmp_path).answers if one.reasons}
    assert reasons["hashed"] == "data: file /logs/a.mcap, which has the same content"
    assert reasons["size"] == "data: file /logs/a.mcap has the same size; its content was not recorded"


def saw_record(one: Input):
    from engine.run.lineage import Record

    return Record(kind="run", inputs=(one,))


def test_things_outside_of_the_folder_that_others_were_made_from_are_listed(tmp_path):
    out = made_file(tmp_path / "data" / "a.arrayrecord", "dataset", [data()], {"data": HELD})
    base = run(tmp_path / "elsewhere" / "base", [data(out)], {"data": HELD})
    run(tmp_path / "runs" / "child", [weights(base, "init")])
    assert answers("s1", tmp_path / "runs") == {"child": SAW, str(base): SAW, str(out): SAW}


def test_limit_makes_it_uncertain_and_a_shard_is_a_part_of_its_dataset(tmp_path):
    run(tmp_path / "few", [data(limit="3")], {"data": HELD})
    assert answers("s1", tmp_path) == {"few": MAYBE}
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data()])
    assert answers(str(out), tmp_path)["a.arrayrecord"] == SAW
    assert answers(str(out.with_name("a-00000-of-00002.arrayrecord")), tmp_path)["a.arrayrecord"] == SAW


def test_cycles_and_damage_are_answered(tmp_path):
    first = run(tmp_path / "a", [data()], {"data": HELD}, init__checkpoint=str(tmp_path / "b"))
    second = run(tmp_path / "b", [data()], {"data": Names({}, {"scene": ["s9"]})}, init__checkpoint=str(first))
    assert answers("s1", tmp_path) == {"a": SAW, "b": MAYBE}
    (second / "names.json.gz").write_bytes(b"damaged")
    (tmp_path / "x.npz.lineage.json").write_text("{")
    found = who_saw("s9", tmp_path)
    assert {one.path: one.answer for one in found.answers} == {"a": CANNOT_TELL, "b": CANNOT_TELL, "x.npz": CANNOT_TELL}
    assert len(found.problems) == 2 and not found.is_clear
    assert "nothing with a lineage" in saw.to_text(who_saw("s1", made_empty(tmp_path))).lower()


def test_long_chain_of_runs_is_answered(tmp_path):
    last = run(tmp_path / "0", [data()], {"data": HELD})
    for number in range(1, 60):
        last = run(tmp_path / str(number), [weights(last, "init")])
    assert set(answers("s1", tmp_path).values()) == {SAW} and set(answers("s9", tmp_path).values()) == {NOT}
    assert "more than 50 levels: ask for this one" in to_text(lineage_of(last))


def made_empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def test_only_some_files_of_names_are_kept_in_memory(folder, monkeypatch):
    monkeypatch.setattr(saw, "CACHED", 1)
    assert answers("s1", folder) == {"base": SAW, "child": SAW, "w.safetensors": SAW, "other": NOT}
