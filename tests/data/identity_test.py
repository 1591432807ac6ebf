"""What is kept of a dataset, and how a change of it is told."""

import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data import identity
from engine.data.array_record import ArrayRecordSource, write_array_record
from engine.data.mixture import Mixture
from engine.data.source import ArraySource, fingerprint


def source(n=5, offset=0.0):
    return ArraySource({"x": np.arange(2 * n, dtype=np.float32).reshape(n, 2) + offset, "y": np.zeros(n, np.int32)})


def test_facts_say_how_many_of_what():
    facts = identity.facts_of(source())
    assert facts == {"examples": "5", "each": "x float32[2], y int32[]", "content": fingerprint(source())}
    assert identity.changes(facts, identity.facts_of(source()), "data") == []


def test_each_fact_that_differs_is_a_line():
    before, after = identity.facts_of(source()), identity.facts_of(source(6))
    lines = identity.changes(before, after, "data")
    assert lines[0] == "data: examples: 5 -> 6"
    assert lines[1] == f"data: content: {before['content']} -> {after['content']}"
    assert len(lines) == 2


def test_of_files_and_sources_those_that_differ_are_named(tmp_path):
    for name, n, offset in (("a", 3, 0), ("b", 4, 0)):
        write_array_record(source(n, offset), str(tmp_path / f"{name}.arrayrecord"))
    before = identity.facts_of(ArrayRecordSource(str(tmp_path / "*.arrayrecord")))
    write_array_record(source(4, 0.5), str(tmp_path / "b.arrayrecord"))
    lines = identity.changes(before, identity.facts_of(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))), "data")
    assert [line.split()[2] for line in lines] == ["b.arrayrecord", "records"]
    write_array_record(source(4, 0.5), str(tmp_path / "c.arrayrecord"))
    lines = identity.changes(before, identity.facts_of(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))), "data")
    assert lines[0] == "data: examples: 7 -> 11"
    assert any(line.startswith("data: content: new c.arrayrecord ") for line in lines)

    def mixed(offset):
        return identity.facts_of(Mixture({"one": source(), "two": source(offset=offset)}, {"one": 1, "two": 2}))

    (line,) = identity.changes(mixed(0), mixed(1), "evaluations.a.data")
    assert line.startswith("evaluations.a.data: content: two 2: ")


def test_many_parts_are_cut():
    before, after = ({"content": "; ".join(f"{i} {x}" for i in range(20))} for x in "ab")
    lines = identity.changes(before, after, "data")
    assert (len(lines), lines[-1]) == (identity.SHOWN + 1, "data: content: ... and 12 more")


def test_the_file_gives_the_facts_back(tmp_path):
    facts = {"data": identity.facts_of(source()), "evaluations.heldout.data": identity.facts_of(source(3))}
    path = tmp_path / "data.json"
    assert identity.read(path) == {}
    path.write_text(identity.to_text(facts))
    assert identity.read(path) == facts
    path.write_text("no JSON")
    with pytest.raises(DataError, match=r"data\.json: cannot be read .* Move it away to go on"):
        identity.read(path)
