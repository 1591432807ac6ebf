import pickle
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.balanced import Balanced
from engine.data.ragged.padded import Bucketed, Padded
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.shuffle import EpochPermutation
from engine.data.source import ArraySource, BaseSource, example_spec, limited
from tests import properties
from tests.data.scenes import FIELDS, SIZES, Scenes, TwoAxes


def read_batches(source, count, size=4, seed=0, shuffle=True, rows=None):
    batches = Batches(source, size, seed, shuffle, rows)
    return [batches[n].examples for n in range(count)]


def test_padding_is_zero_and_masked():
    example = Padded(Scenes(), 16, FIELDS)[0]
    assert example["agent"].tolist() == [1, 2, 3] + [0] * 13
    assert example["pair"].shape == (16, 2) and example["pair"][2].tolist() == [3, -3] and not example["pair"][3:].any()
    assert example["mask"].tolist() == [True] * 3 + [False] * 13
    assert example["segment_ids"].tolist() == [1] * 3 + [0] * 13
    assert example["positions"].tolist() == [0, 1, 2] + [0] * 13
    assert example["scene"] == 0


def test_one_length_is_read_in_the_default_order_and_can_be_mixed():
    plain = ArraySource({"scene": np.arange(len(SIZES), dtype=np.int32)})
    padded = Padded(Scenes(), 16, FIELDS)
    expected = [batch["scene"].tolist() for batch in read_batches(plain, 9)]
    assert [batch["scene"].tolist() for batch in read_batches(padded, 9)] == expected
    mixed = read_batches(Mixture({"a": padded, "b": Padded(Scenes([2, 4]), 16, FIELDS)}, {"a": 1, "b": 1}), 2)
    assert mixed[0]["pair"].shape == (4, 16, 2)


def test_batch_has_the_smallest_length_that_holds_its_examples():
    for batch in read_batches(Padded(Scenes(), [4, 8, 16], FIELDS), 20):
        longest = batch["mask"].sum(1).max()
        assert batch["agent"].shape == (4, next(length for length in (4, 8, 16) if length >= longest))


def test_fields_of_two_axes_are_padded_to_their_own_lengths():
    lengths = [{"agents": 4, "lanes": 20}, {"agents": 16, "lanes": 20}]
    padded = Padded(TwoAxes(), lengths, {"agents": FIELDS, "lanes": "lane"})
    specs = padded.shape_specs()
    for batch, shape in ((OrderedBatches(padded, 2)[n].examples, shape) for n, shape in ((7, 1), (0, 0))):
        found = jax.tree.map(lambda x: (x.shape[1:], x.dtype), batch)
        assert found == jax.tree.map(lambda x: (x.shape, x.dtype), specs[shape])
        assert (batch["mask"]["lanes"].sum(1) == 20 - batch["mask"]["agents"].sum(1)).all()
        assert (
            batch["lane"][batch["mask"]["lanes"]] == batch["scene"].repeat(batch["mask"]["lanes"].sum(1))[:, None]
        ).all()


def in_small_groups(source, batch_size, seed, rows=None):
    """Returns batches whose addresses are computed for 16 rows at once; 4,096 would be hundreds of short epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.data.batches.GROUP", 16)
        return Batches(source, batch_size, seed, True, rows)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    batch_size=st.integers(1, 8),
    consecutive=st.integers(1, 3),
    sorts=st.booleans(),
    seed=st.integers(0, 3),
)
@properties.examples(120)
def test_every_example_is_read_once_per_epoch_in_batches_of_one_length(sizes, batch_size, consecutive, sorts, seed):
    source = (Bucketed if sorts else Padded)(Scenes(sizes), [3, 10, 30], FIELDS, consecutive=consecutive)
    batches, epochs, rows = in_small_groups(source, batch_size, seed), 3, batch_size * consecutive
    total = -(-epochs * len(sizes) // rows) * consecutive  # the number of steps of three epochs, in whole groups
    read = [[address // 3 for address in batches.addresses(n).tolist()] for n in range(total)]
    counts = np.bincount(np.concatenate(read), minlength=len(sizes))
    assert (counts >= epochs).all() and counts.sum() == total * batch_size
    assert counts.max() <= epochs + -(-rows // len(sizes))  # only the batches that span two epochs add to an epoch
    for n, indices in enumerate(read):
        assert (3, 10, 30)[batches.shape(n)] >= max(sizes[index] for index in indices)
    for first in range(0, total, consecutive):
        assert batches.same_shape(first, consecutive)


@given(start=st.integers(0, 19), processes=st.sampled_from([1, 2, 3, 6]), sorts=st.booleans(), seed=st.integers(0, 3))
@properties.examples(25)
def test_batch_is_a_pure_function_of_seed_and_number_on_any_number_of_processes(start, processes, sorts, seed):
    source = (Bucketed if sorts else Padded)(Scenes(), [4, 8, 16], FIELDS)
    whole = in_small_groups(source, 6, seed)
    expected = [whole[n].examples for n in range(start + 1)][-1]
    rows = 6 // processes
    parts = [
        pickle.loads(pickle.dumps(in_small_groups(source, 6, seed, slice(i * rows, (i + 1) * rows))))[start].examples
        for i in range(processes)
    ]
    found = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_bucketed_batches_hold_examples_of_similar_length_in_shuffled_order():
    sizes = np.random.default_rng(0).integers(1, 17, 400).tolist()
    source = Bucketed(Scenes(sizes), [4, 8, 12, 16], FIELDS)
    batches = Batches(source, 10, 0, True)
    lengths = np.array([(4, 8, 12, 16)[batches.shape(n)] for n in range(40)])
    needed = np.bincount(np.searchsorted([4, 8, 12, 16], sizes))
    assert abs(np.bincount(lengths // 4 - 1) - needed / 10).max() <= 1
    assert (np.diff(lengths) < 0).sum() > 5
    other = [batches.shape(n) for n in range(40, 80)]
    assert other != [batches.shape(n) for n in range(40)] and sorted(other) == sorted(lengths // 4 - 1)


@pytest.mark.parametrize("sorts", [True, False])
def test_evaluation_reads_each_example_once(sorts):
    source = (Bucketed if sorts else Padded)(Scenes(), [4, 8, 16], FIELDS)
    ordered = OrderedBatches(source, 4)
    batches = [ordered[n] for n in range(len(ordered))]
    scenes = np.concatenate([batch.examples["scene"][batch.weight > 0] for batch in batches])
    assert sorted(scenes) == list(range(len(SIZES)))
    assert (scenes.tolist() == list(range(len(SIZES)))) != sorts
    assert scenes.tolist() == [ordered.address(position) for position in range(len(SIZES))]
    lengths = [batch.examples["agent"].shape[1] for batch in batches]
    assert lengths == ([4, 8, 8, 16] if sorts else [16, 16, 8, 16])
    last = ordered.remainder().examples
    assert last["scene"].tolist() == scenes[-3:].tolist()


def test_order_of_the_source_can_be_kept_on_any_number_of_processes():
    source = Balanced(Bucketed(Scenes(), [4, 8, 16], FIELDS), 2)
    parts = [OrderedBatches(source, 4, slice(i, i + 2), in_order=True) for i in (0, 2)]
    indices = [*range(len(SIZES)), len(SIZES) - 1]
    assert [part.address(position) for part in parts for position in range(len(SIZES))] == 2 * indices[:-1]
    for n, length in enumerate([16, 16, 8, 16]):
        examples = [part[n].examples for part in parts]
        assert [one["agent"].shape for one in examples] == [(2, length)] * 2
        scenes = np.concatenate([one["scene"] for one in examples])
        assert scenes.tolist() == indices[4 * n : 4 * n + 4]


class Unmeasured(BaseSource):
    """Scenes whose lengths are not known."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        return Scenes()[index]


def test_unreadable_example_gets_weight_0_and_a_filler_of_the_same_length():
    class Holes(Scenes):
        def __getitem__(self, index):
            if index in (4, 7):
                raise OSError("damaged")
            return super().__getitem__(index)

    for source in (Bucketed(Holes(), [4, 8, 16], FIELDS), Padded(Holes(), [4, 8, 16], FIELDS)):
        batches = Batches(source, 4, 0, True)
        tolerant = TolerantBatches(batches)
        found = [tolerant[n] for n in range(8)]
        assert {SIZES[bad.address // 3] for one in found for bad in one.bad} == {8, 12}
        for n, one in enumerate(found):
            assert one.batch.examples["agent"].shape == (4, (4, 8, 16)[batches.shape(n)])
            assert (one.batch.weight == 0).sum() == len(one.bad)
        evaluated = TolerantBatches(OrderedBatches(source, 4))
        assert sum(len(evaluated[n].bad) for n in range(4)) == 2


def test_source_without_lengths_may_have_unreadable_examples(capsys):
    class Holes(Unmeasured):
        bad: Sequence[int] = (4, 7)

        def __getitem__(self, index):
            if index in self.bad:
                raise OSError("damaged")
            return super().__getitem__(index)

    source = Bucketed(Holes(), [4, 8, 16], FIELDS)
    text = capsys.readouterr().err
    assert "warning: Example 4 of " in text and "OSError: damaged" in text and "2 of 15 examples" in text
    tolerant = TolerantBatches(Batches(source, 4, 0, True))
    found = [tolerant[n] for n in range(8)]
    assert {bad.address // 3 for one in found for bad in one.bad} == {4, 7}
    assert [(one.batch.weight == 0).sum() for one in found] == [len(one.bad) for one in found]
    with pytest.raises(DataError, match=r"Example [47] of .*damaged"):
        read_batches(source, 8)
    assert source.fingerprint() != Bucketed(Unmeasured(), [4, 8, 16], FIELDS).fingerprint()
    Holes.bad = range(12)
    with pytest.raises(DataError, match=r"Example 10 of .*damaged"):
        Bucketed(Holes(), [4, 8, 16], FIELDS)


def test_order_of_many_batches_is_computed_in_one_call(monkeypatch):
    calls, plain = [], EpochPermutation.indices
    monkeypatch.setattr(EpochPermutation, "indices", lambda self, at: calls.append(len(at)) or plain(self, at))
    for source in (Padded(Scenes(), 16, FIELDS), Padded(Scenes(), [4, 8, 16], FIELDS)):
        calls.clear()
        assert len(read_batches(source, 30)) == 30
        assert len(calls) <= 2


def test_limit_takes_the_first_examples_with_their_lengths():
    part = limited(Bucketed(Scenes(), [4, 8, 16], FIELDS), 5)
    found = np.concatenate([batch["scene"] for batch in read_batches(part, 5, size=1)])
    assert sorted(found) == list(range(5))


def test_lengths_are_measured_if_the_source_does_not_know_them():
    measured, known = (Bucketed(kind(), [4, 16], FIELDS) for kind in (Unmeasured, Scenes))
    assert measured.index().tolist() == known.index().tolist() == [SIZES]
    np.testing.assert_equal(read_batches(measured, 8), read_batches(known, 8))


def test_fingerprint_depends_on_the_padding():
    sources = [Padded(Scenes(), 16, FIELDS), Padded(Scenes(), 17, FIELDS), Padded(Scenes(), [4, 16], FIELDS)]
    sources += [Bucketed(Scenes(), [4, 16], FIELDS), Bucketed(Scenes(), [4, 16], FIELDS, consecutive=2)]
    assert len({source.fingerprint() for source in sources}) == 5


def test_example_read_by_index_has_the_largest_length():
    assert example_spec(Bucketed(Scenes(), [4, 16], FIELDS))["pair"].shape == (16, 2)


class Odd(Scenes):
    def __init__(self, example):
        super().__init__()
        self.example = example

    def __getitem__(self, index):
        return self.example if index == 2 else super().__getitem__(index)


class Transformed(Scenes):
    def transform(self, example, rng):
        return example


@pytest.mark.parametrize(
    ("source", "lengths", "fields", "text"),
    [
        (Scenes(), [4, 8], FIELDS, r"Example 2 of .*Scenes has 9 elements, but the largest of `lengths` is 8. Give"),
        (Scenes(), [8, 4, 16], FIELDS, r"lengths 8; 4; 16: each must be above the one before it. Sort them"),
        (Scenes(), list(range(1, 10)), FIELDS, r"found 9 lengths, allowed are 1 to 8"),
        (Scenes(), [0, 16], FIELDS, r"lengths = 0: allowed are 1 and more elements"),
        (Scenes(), {"agents": 16}, FIELDS, r"lengths = \{'agents': 16\}: allowed is a number, the axes that `fields`"),
        (TwoAxes(), 16, {"agents": "agent", "lanes": "lane"}, r"allowed is a number for each of agents, lanes"),
        (Scenes(), 16, (), r"fields = \(\): name at least one ragged field"),
        (Scenes(), 16, ("agent", "agent"), r"fields: agent is named twice"),
        (Scenes(), 16, ("mask",), r"fields: the engine adds mask itself"),
        (Transformed(), 16, FIELDS, r"has a transform, .*transform\(example, rng\) in a subclass of Padded"),
        (ArraySource({"x": np.zeros(3)}), 16, "x", r"Example 0 of .*: ragged fields .* found x \[\]"),
        (Odd({"agent": np.ones(2)}), 16, FIELDS, r"Example 2 of .*Odd has no `pair`, found agent. Correct `fields`"),
        (Odd({"agent": [1, 2], "pair": np.ones((3, 2))}), 16, FIELDS, r"Example 2 .* found agent \[2\], pair \[3, 2\]"),
        (
            Odd({"agent": np.ones(9, int), "pair": np.ones((9, 3), np.float32), "scene": np.int32(0)}),
            16,
            FIELDS,
            r"Example 2 of .*: pair is float32\[9, 3\], but float32\[\d+, 2\] in other examples",
        ),
        (Odd({"agent": [], "pair": [], "mask": 1}), 16, FIELDS, r"has an entry `mask`, which the engine adds itself"),
        (Odd([1]), 16, FIELDS, r"Example 2 of .*Odd is a list. A ragged example is a dict of arrays"),
    ],
)
def test_invalid_arguments_and_examples_raise_data_error(source, lengths, fields, text):
    with pytest.raises(DataError, match=text):
        Batches(Padded(source, lengths, fields), 4, 0, False)[0]


def test_several_lengths_cannot_be_a_part_of_a_mixture():
    with pytest.raises(DataError, match=r"2 lengths, .*A part of a mixture can have one length: give the largest"):
        Batches(Mixture({"a": Padded(Scenes(), [4, 16], FIELDS)}, {"a": 1}), 4, 0, True)
