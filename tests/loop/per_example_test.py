"""Tags of examples: entries and functions of them are read from host batches, and what cannot be stored is named."""

import re
from typing import Any

import numpy as np
import pytest

from engine.base.errors import ConfigError, TaskError
from engine.config.schema import Evaluation
from engine.data.batch import Batch
from engine.data.collate import stack_examples
from engine.data.ragged.packing import Packed
from engine.data.source import ArraySource
from engine.loop.evaluation import Evaluator
from engine.loop.per_example import LONGEST, PerExample
from engine.metrics import example_file
from engine.metrics.mean import Mean, Sum
from engine.metrics.slices import Ranking, SlicedStates
from tests import zoo
from tests.predicting import NAMES, SIZES, Ragged, Unreadable, bucketed

VALUES: Any = np.ones(4, np.float32)
STATES = SlicedStates({"loss": Mean(VALUES, VALUES)}, (), Ranking(each=True), "evaluations.test")


def number_of(example):
    """The number in the name of an example."""
    return int(example["id"].split()[1].rstrip("x"))


def mixed(example):
    """A number for most examples."""
    return "ten" if example["id"].startswith("scene 10") else 0


def broken(example):
    return example["idd"]


def nothing(example):
    return None


def large(example):
    return 2**63


def subject(source=None, **tags) -> PerExample:
    return PerExample(Evaluation(tags=tags), source or Unreadable(), STATES, "evaluations.test")


def values_of(tags: PerExample, examples, positions, weight=None) -> dict[str, np.ndarray]:
    """Returns the tags after one batch, which an evaluation has left out of its merged states."""
    tags.start()
    weight = np.ones(len(examples), np.float32) if weight is None else np.array(weight, np.float32)
    tags.add(Batch(stack_examples(examples, str), weight), np.array(positions), lambda x: x * 2)
    indices, found = tags._gathered()
    return {"example": indices, **found}


def test_entries_and_functions_give_a_value_for_each_row_that_counts():
    tags = subject(key="id", raw="raw", label="y", number="tests.loop.per_example_test.number_of")
    source = Unreadable()
    found = values_of(tags, [source[i] for i in (8, 3, 3)], [4, 5, 6], weight=[1, 1, 0])
    assert found["example"].tolist() == [8, 10]
    assert (found["key"].tolist(), found["raw"].tolist()) == ([NAMES[8], NAMES[3]], ["\\x008", "\\x003"])
    assert (found["label"] == source.rows["y"][[8, 3]]).all() and found["number"].tolist() == [8, 3]
    tags.start()  # an interrupted evaluation leaves nothing
    indices, values = tags._gathered()
    assert not len(indices)
    assert [values[name].dtype.kind for name in ("key", "label", "number")] == ["U", "i", "i"]


def test_entry_of_nested_examples_of_several_lengths_is_named_by_its_path():
    source = bucketed()
    nested = [{"meta": {"city": name}, "x": np.float32(1)} for name in ("Ulm", "Köln")]
    assert values_of(subject(nested, city="meta/city"), nested, [0, 1])["city"].tolist() == ["Ulm", "Köln"]
    assert values_of(subject(source, id="id"), [source[5]], [0])["id"].tolist() == [NAMES[5]]


def test_each_packed_row_counts_as_one_example(tmp_path):
    class Points(zoo.Classify):
        def evaluate(self, model, batch):
            return {"points": Sum.of(batch["points"] * batch["mask"]), "loss": None}

    packed, program = Packed(Ragged(), 8, fields=["points"], split=False), zoo.program(Points())
    evaluation = Evaluator("test", Evaluation(per_example=True), packed, program.evaluation, 8)
    assert evaluation.warnings[-1].endswith("The metrics of each row are kept, as if it were one example.")
    found: Any = evaluation.run(program.init())
    (path := tmp_path / "0.parquet").write_bytes(found["test/per_example"].content)
    rows: Any = example_file.read_parquet(path).metrics["points"]
    pieces = [packed.pieces(row) for row in range(len(packed))]
    assert rows.total.tolist() == [sum(piece.example * SIZES[piece.example] for piece in row) for row in pieces]
    assert len(packed) < 37


@pytest.mark.parametrize(
    ("tag", "error", "text"),
    [
        ("idd", ConfigError, r"'idd': the examples have no such entry\. Did you mean id\? Entries here: id, raw, "),
        ("x", TaskError, r"found an array float32\[16\] in example 0\. A tag is the name of an entry"),
        (3, ConfigError, r"3: A tag is the name of an entry of the examples, or the dotted path of a function"),
        ("tests.loop.per_example_test.numbr", ConfigError, r"found 'tests.loop.per_example_test.numbr'.*number_of"),
        ("tests.loop.per_example_test.broken", TaskError, r"per_example_test.broken: there is no 'idd' .*mean id\?"),
        ("tests.loop.per_example_test.nothing", TaskError, r"found None in example 0\. A tag is the name of an"),
        ("tests.loop.per_example_test.large", TaskError, r"found a int in example 0\..* number of at most 64 bits"),
    ],
)
def test_tag_that_gives_no_number_or_text_is_named(tag, error, text):
    with pytest.raises(error, match=rf"^evaluations\.test\.tags\.scene.*{text}"):
        subject(scene=tag)


def test_later_examples_must_have_values_of_the_same_kind():
    source = Unreadable()
    tags = subject(ten="tests.loop.per_example_test.mixed")
    with pytest.raises(TaskError, match=r"tags.ten: found a text in example 20, and a number in the first one"):
        values_of(tags, [source[9], source[10]], [9, 10])
    long = [{"id": text, "x": np.float32(0)} for text in ("a", "b" * (LONGEST + 1))]
    with pytest.raises(TaskError, match=r"tags.key: found a text of 1,025 characters in example 2\. Allowed are 1,024"):
        values_of(subject(long, key="id"), long, [0, 1])


def test_tags_count_towards_the_size_of_a_file(monkeypatch):
    source = ArraySource({"x": np.zeros(10, np.float32), "id": np.array(["12345678"] * 10)})
    monkeypatch.setattr(example_file, "LARGEST_GIB", 10 * (8 + 4 * 8) / 2**30)
    subject(source, id="id")
    monkeypatch.setattr(example_file, "LARGEST_GIB", 10 * (8 + 4 * 8 - 1) / 2**30)
    with pytest.raises(ConfigError, match=re.escape("evaluations.test.per_example: found 10 examples of 40 bytes")):
        subject(source, id="id")
