"""Whole runs on streams: iterables, evaluations, errors. tests/faults/supervisor_test.py kills runs on a stream."""

import pytest

import engine
from engine.api.prepared import prepare
from engine.base.errors import ConfigError
from engine.data.adapt import descriptions
from tests import runs, zoo


def examples():
    yield from (zoo.source(64)[index] for index in range(64))


class Iterable:
    def __iter__(self):
        return examples()


def test_iterable_trains_and_evaluates_as_the_same_data_in_memory(tmp_path):
    config = runs.config(train__total="6 steps", data__shuffle=False)
    engine.train(config, data=zoo.source(64), evaluation_data={"heldout": zoo.source(64)}, workdir=tmp_path / "memory")
    data = {"data": Iterable(), "evaluation_data": {"heldout": examples}}
    engine.train(config, **data, workdir=tmp_path / "iterable")
    output = (tmp_path / "iterable/log.txt").read_text()
    for name in ("loss", "heldout/loss"):
        assert runs.rows(tmp_path / "iterable", name) == runs.rows(tmp_path / "memory", name)
    assert output.count("data: tests.stream_runs_test.Iterable can only be iterated, so it is read as a stream of") == 1
    assert output.count("evaluations.heldout.data: tests.stream_runs_test.examples can only be iterated") == 1
    assert "of 64 examples; 1 shard" in output and "of unknown length; 1 shard" in output
    again = engine.evaluate(tmp_path / "iterable", evaluation_data={"heldout": Iterable()})
    assert again["heldout/loss"] == pytest.approx(runs.rows(tmp_path / "memory", "heldout/loss")[6], abs=1e-6)


def test_generator_function_by_dotted_path_is_read_as_a_stream(tmp_path):
    config = runs.config(train__total="2 steps", data={"target": "tests.stream_runs_test.examples"})
    summary = engine.train(config, workdir=tmp_path / "run", fast_dev_run=True)
    assert summary.step == 2
    source = prepare(config).source
    assert descriptions({"data": source})[0].startswith("data: tests.stream_runs_test.examples can only be iterated")


def test_stream_of_unknown_length_has_no_epochs():
    for changed in ({"train__total": "2 epochs"}, {"evaluations__heldout__every": "1 epoch"}):
        with pytest.raises(ConfigError, match=r"'\d epochs?', but the training data is a stream of unknown length"):
            engine.train(runs.config(**changed), data=Iterable())
