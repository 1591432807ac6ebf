import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.duration import UNKNOWN_LENGTH, Duration
from engine.base.errors import ConfigError, DataError
from engine.config.schema import Data
from engine.data.adapt import as_source, check_readable, descriptions, limit_source
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches, OrderedBatches
from engine.data.dataset_summary import summarize
from engine.data.ragged.balanced import Balanced
from engine.data.ragged.packing import Packed
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, example_spec, limited
from engine.data.streams.cursor import StreamReadError
from engine.data.streams.source import StreamSource
from tests import properties
from tests.data.streams.counting import Counting, drawn, run

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
ATTEMPTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=2, max_size=4)


@properties.examples(60)
@given(COUNTS, st.booleans(), st.integers(1, 8), st.integers(1, 30), ATTEMPTS, st.booleans())
def test_batches_are_equal_for_any_processes_and_interruptions(counts, known, batch_size, window, attempts, shuffle):
    settings: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "window": window}
    alone, _ = run(lambda: Counting(counts, known), [(1, sum(steps for _, steps in attempts))], **settings)
    found, _ = run(lambda: Counting(counts, known), attempts, **settings)
    assert found == alone


@properties.examples(30)
@given(COUNTS, st.booleans(), st.integers(1, 8), ATTEMPTS)
def test_batches_of_a_mixture_are_equal_for_any_processes_and_interruptions(counts, known, batch_size, attempts):
    others = ArraySource({"shard": np.full(5, 99, np.int32), "item": np.arange(5, dtype=np.int32)})

    def mixture(source):
        return Mixture({"a": source, "b": others}, {"a": 3, "b": 1})

    settings: dict[str, Any] = {"batch_size": batch_size, "wrap": mixture}
    alone, _ = run(lambda: Counting(counts, known), [(1, sum(steps for _, steps in attempts))], **settings)
    found, _ = run(lambda: Counting(counts, known), attempts, **settings)
    assert found == alone
    rows = {pair for batch in run(lambda: Counting(counts, known), [(1, 40)], **settings)[0] for pair in batch}
    assert {(99, item) for item in range(5)} < rows or batch_size == 1


@pytest.mark.parametrize("known", [True, False])
def test_resume_reads_at_most_a_window_again_and_each_process_only_the_shards_of_its_rows(known):
    settings: dict[str, Any] = {"batch_size": 16, "window": 32}
    _, reads = run(lambda: Counting([10_000] * 8, known), [(1, 500), (2, 5), (4, 5)], **settings)
    assert 8000 <= sum(reads[0]) <= 8000 + 32
    assert all(sum(each) <= 5 * 16 + 2 * 32 for each in reads[1:])
    assert all(each <= (5 * 16 + 2 * 32) / len(segment) for segment in reads[1:] for each in segment)


def test_shards_of_unknown_length_start_again_by_themselves():
    found, _ = run(lambda: Counting([2, 3], known=False), [(1, 4)], batch_size=4, shuffle=False)
    assert found == [
        [(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 0), (0, 1), (1, 2), (1, 0)],
        [(0, 0), (0, 1), (1, 1), (1, 2)], [(0, 0), (0, 1), (1, 0), (1, 1)],
    ]  # fmt: skip


def test_evaluation_reads_each_example_once():
    source = as_source(Counting([2, 5, 3], known=False), "data", finite=True)
    batches = OrderedBatches(source, 4)
    rows = [pair for n in range(len(batches)) for pair in drawn(batches, n)]
    assert len(source) == 10
    assert sorted(rows[:10]) == [(s, k) for s, count in enumerate([2, 5, 3]) for k in range(count)]
    assert batches.weight(2).tolist() == [1, 1, 0, 0]
    assert drawn(batches, 0) == rows[:4]  # the next evaluation begins again
    mixture = Mixture({"a": Counting([4], known=False)}, {"a": 1})
    for source in (mixture, Balanced(mixture, 2), Mixture({"b": mixture}, {"b": 1})):
        finite = as_source(source, "data", finite=True)
        assert (len(source), len(finite)) == (UNKNOWN_LENGTH, 4)
        assert [drawn(OrderedBatches(finite, 2), n) for n in range(2)] == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]


def test_evaluation_over_a_wrapped_stream_of_unknown_length_is_refused_unless_it_has_a_limit():
    class Wrapped:
        def __init__(self):
            self.source = as_source(Counting([4], known=False), "data")

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            return self.source[index]

    with pytest.raises(DataError, match=r"Wrapped: its length is not known, .* would not end. Set data.limit, or add"):
        as_source(Wrapped(), "data", finite=True)
    section = Data(target="data.Wrapped", limit=3)
    assert len(limit_source(Wrapped(), section, "data", finite=True)) == 3


@pytest.mark.parametrize("known", [True, False])
def test_limit_takes_the_first_examples_of_the_shards(known):
    source = limited(as_source(Counting([4, 4, 4], known), "data"), 5)
    assert isinstance(source, StreamSource)
    assert (len(source), source.counts) == (5, [2, 2, 1])
    unequal = limited(as_source(Counting([1, 9, 4], known), "data"), 10)
    assert isinstance(unequal, StreamSource)
    assert unequal.counts == [1, 5, 4]
    assert len(limited(as_source(Counting([2, 2], known), "data"), 100)) == 4
    mixture = limited(Mixture({"a": Counting([50], known), "b": Counting([50], known=False)}, {"a": 1, "b": 1}), 8)
    assert len(mixture) == 8


class Text(Counting):
    """Items are text, some of which is not a number."""

    def open(self, shard, position) -> Any:
        for number in range(position or 0, self.lengths_of[shard]):
            yield "x" if number % 50 == 7 else str(number), number + 1

    def decode(self, item):
        return {"shard": np.int32(0), "item": np.int32(item)}


def test_example_that_cannot_be_decoded_raises_or_gets_weight_0():
    batches = Batches(as_source(Text([200, 200]), "data"), 16, 0, False)
    with pytest.raises(DataError, match=r"^Example 7 of shard 0 of .*Text: ValueError: invalid literal.*on_error=skip"):
        batches[0]
    found = TolerantBatches(batches)[0]
    assert found.batch.weight.tolist() == [1, 1, 1, 1, 1, 1, 1, 0] * 2
    assert [bad.row for bad in found.bad] == [7, 15]
    again = TolerantBatches(Batches(as_source(Text([200, 200]), "data"), 16, 0, False, slice(8, 16)))[0]
    np.testing.assert_array_equal(again.batch.examples["item"], found.batch.examples["item"][8:])


def test_stream_that_breaks_ends_the_run_even_if_bad_examples_are_skipped():
    stream = Counting([20])
    batches = Batches(as_source(stream, "data"), 4, 0, False)
    stream.lengths_of[0] = 10
    with pytest.raises(StreamReadError, match="ended after 10 examples, but it says that it has 20"):
        TolerantBatches(batches)[3]
    mixture = Mixture({"a": batches.source}, {"a": 1})
    for source in (batches.source, mixture):
        with pytest.raises(StreamReadError, match="ended after 10 examples, but it says that it has 20"):
            TolerantBatches(OrderedBatches(source, 4))[3]


class Noisy(Counting):
    def transform(self, example, rng):
        return {**example, "noise": np.float32(rng.random())}


def test_transform_depends_on_the_position_alone():
    whole = Batches(as_source(Noisy([9, 9]), "data"), 6, 0, True)[7].examples["noise"]
    part = Batches(as_source(Noisy([9, 9]), "data"), 6, 0, True, slice(2, 5))[7].examples["noise"]
    np.testing.assert_array_equal(part, whole[2:5])
    assert len(set(whole.tolist())) == 6


class Iterable:
    def __iter__(self):
        return iter({"x": np.float32(i)} for i in range(6))


def generator():
    yield from Iterable()


@pytest.mark.parametrize("found", [Iterable(), generator])
def test_iterables_and_generator_functions_are_read_as_one_shard(found):
    source = as_source(found, "data", window=3)
    assert Batches(source, 4, 0, False)[1].examples["x"].tolist() == [4, 5, 0, 1]
    assert sorted(Batches(source, 3, 0, True)[1].examples["x"].tolist()) == [3, 4, 5]
    assert example_spec(source)["x"].shape == ()
    (text,) = descriptions({"data": source})
    name = rf"tests\.data\.streams\.source_test\.{'generator' if found is generator else 'Iterable'}"
    assert re.fullmatch(
        rf"data: {name} can only be iterated, so it is read as a stream of unknown length; 1 shard; every process "
        r"reads all examples in order; a resume skips the earlier ones by reading them; data.shuffle mixes examples "
        r"only within 3 of them \(shuffle_window\); a shard that ends starts again\.", text,
    )  # fmt: skip
    text, order = descriptions({"data": source}, shuffle=False)
    assert "shuffle" not in text and order == "data: the examples are read in order (data.shuffle=False)"


def test_description_of_an_evaluation_names_neither_resume_nor_shuffling():
    (text,) = descriptions({"evaluations.a.data": as_source(Counting([4, 4]), "data")})
    assert text == (
        "evaluations.a.data: tests.data.streams.counting.Counting is a stream of 8 examples; 2 shards; every process "
        "reads all examples in order."
    )


def test_iterator_that_can_be_read_only_once_is_refused():
    for found in (generator(), iter([1])):
        with pytest.raises(DataError, match=r"^data: found a \w+, which can be read only once.*generator function"):
            check_readable(found, "data")
    assert len(as_source(generator(), "data", again=generator, finite=True)) == 6


def endless():
    yield from ({"x": np.int32(number)} for number in itertools.count())


def test_limit_of_a_section_bounds_the_counting_of_an_endless_stream():
    source = limit_source(endless, Data(limit=5), "evaluation_data['a']", finite=True)
    assert [source[index]["x"] for index in range(len(source))] == [0, 1, 2, 3, 4]


def test_descriptions_name_the_streams_within_other_sources():
    name = "tests.data.streams.counting.Counting is a stream of"
    inner = Mixture({"a": Counting([4, 4]), "b": Counting([3])}, {"a": 1, "b": 1})
    mixture = Mixture({"c": Counting([5]), "inner": inner}, {"c": 1, "inner": 1})
    found = descriptions({"data": mixture, "evaluations.a.data": Balanced(mixture, 2)})
    sizes = ["5 examples; 1 shard", "8 examples; 2 shards", "3 examples; 1 shard"]
    assert [text.partition("; a resume")[0] for text in found] == [
        *(f"data: {name} {size}; each process may read all shards in order" for size in sizes),
        *(f"evaluations.a.data: {name} {size}; every process reads all examples in order." for size in sizes),
    ]


@pytest.mark.parametrize(
    ("counts", "shards", "text"),
    [([1], 2, "counts gives 1 numbers for 2 shards"), ([0, 0], 2, "no examples"), ([], 0, "shards = 0: allowed is")],
)
def test_invalid_shards_and_counts_are_refused(counts, shards, text):
    stream = Counting(counts)
    stream.shards = shards
    with pytest.raises(DataError, match=text):
        as_source(stream, "data")


def test_counts_that_fail_are_reported():
    stream: Any = Counting([5])
    stream.counts = lambda: 1 / 0
    text = r"^data: its counts\(\) failed: ZeroDivisionError: division by zero \(.*source_test\.py:\d+ in <lambda>\)\.$"
    with pytest.raises(DataError, match=text):
        as_source(stream, "data")


def test_duration_in_epochs_needs_a_known_length():
    source = as_source(Counting([9], known=False), "data")
    assert Duration(5, "examples").steps(2, len(source)) == 3
    with pytest.raises(ConfigError, match=r"stream of unknown length, which has no epochs\. Write train\.total"):
        Duration(1, "epochs").steps(2, len(source))


def test_summary_names_the_shards_and_notices_other_content():
    summaries = [summarize(as_source(Counting(counts, known), "data")) for counts, known in
                 [([5, 6], True), ([5, 6], False), ([11], False)]]  # fmt: skip
    assert [each["examples"] for each in summaries] == ["11", "unknown", "unknown"]
    assert [each["content"].partition("; ")[2] for each in summaries] == ["2 shards [5, 6]", "2 shards", "1 shards"]
    assert summaries[0]["content"] != summaries[2]["content"]
    assert "examples that differ from one reading to the next" in summarize(as_source(Random(), "data"))["content"]


class Random:
    def __iter__(self):
        return iter({"x": value} for value in np.random.default_rng().random(4))


def test_sources_that_need_random_access_refuse_streams():
    with pytest.raises(DataError, match=r"documents: found a Iterable without .* can only be iterated, but here"):
        Packed(Iterable(), 8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"found a Counting without .* It is a stream, but here examples are read by"):
        Packed(Counting([5]), 8)  # pyright: ignore[reportArgumentType]
