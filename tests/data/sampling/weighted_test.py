import math
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.balanced import Balanced
from engine.data.ragged.packing import Packed
from engine.data.ragged.padded import Bucketed, Padded
from engine.data.reader import read
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.weighted import Weighted
from engine.data.source import ArraySource, limited
from tests import properties
from tests.data.scenes import FIELDS, Scenes

LABELS = np.array([0] * 40 + [1] * 15 + [2] * 5)
SEVERAL = [["car", "bus"] if i == 7 else ["car"] if i % 2 else [] for i in range(60)]


def source(labels=LABELS, kind=ArraySource):
    return kind({"label": np.asarray(labels), "index": np.arange(len(labels)), "x": np.zeros(len(labels), np.float32)})


def drawn(weighted, count, seed=0, shuffle=True):
    """Returns the indices of the first `count` examples of a run."""
    return Batches(weighted, count, seed, shuffle)[0].examples["index"]


def classes(weighted, epochs, seed=0):
    """Returns how often each class is drawn in each epoch, `[epochs, classes]`."""
    labels = LABELS[drawn(weighted, epochs * len(LABELS), seed)].reshape(epochs, -1)
    return np.array([np.bincount(epoch, minlength=3) for epoch in labels])


@given(
    weights=st.lists(st.one_of(st.integers(0, 20), st.floats(0, 5)), min_size=1, max_size=40).filter(any),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
)
@properties.examples(80)
def test_each_example_is_drawn_its_expected_number_of_times_rounded_up_or_down_in_each_epoch(weights, seed, shuffle):
    n = len(weights)
    indices = drawn(Weighted(source(np.zeros(n, int)), weights), 12 * n, seed, shuffle).reshape(12, n)
    counts = np.array([np.bincount(epoch, minlength=n) for epoch in indices])
    expected = n * np.array(weights, float) / math.fsum(weights)
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()
    # The means come as near as the points of a golden-ratio sequence are even: within 3 draws over 12 epochs.
    assert np.abs(counts.sum(axis=0) - 12 * expected).max() < 3


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
@properties.examples(60)
def test_class_balance_draws_each_example_of_a_class_before_any_of_them_again(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    epochs = 5
    indices = drawn(Weighted(source(labels), tags="label", balance="class"), epochs * len(labels), seed)
    counts, shares = np.bincount(indices, minlength=len(labels)), len(labels) / len(sizes)
    for tag in range(len(sizes)):
        own = counts[labels == tag]
        assert abs(own.sum() - epochs * shares) < 2
        assert own.max() - own.min() <= 2  # whole epochs of the class, and parts of the last two: blocks are shuffled


def test_equal_weights_draw_each_example_once_in_each_epoch_in_a_new_order():
    indices = drawn(Weighted(source(), np.full(60, 0.1)), 240).reshape(4, 60)
    assert (np.sort(indices, axis=1) == np.arange(60)).all()
    assert len({tuple(epoch) for epoch in indices.tolist()}) == 4


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        (dict(balance="class"), [1, 1, 1]),
        (dict(balance="natural"), [40, 15, 5]),
        (dict(balance="sqrt"), np.sqrt([40, 15, 5])),
        (dict(balance={"0": 1, 1: 0, "2": 3}), [1, 0, 3]),
        (dict(weights={"2": 4}), [40, 15, 20]),
        (dict(weights={"0": 0}), [0, 15, 5]),
        (dict(balance="repeat", threshold=0.5), [40, 15 * math.sqrt(2), 5 * math.sqrt(6)]),
    ],
)
def test_shares_of_the_tags_in_each_epoch_are_exact_to_about_one_example(arguments, shares):
    expected = 60 * np.array(shares) / np.sum(shares)
    counts = classes(Weighted(source(), tags="label", **arguments), 20)
    assert np.abs(counts - expected).max() < 2
    assert np.abs(counts.sum(axis=0) - 20 * expected).max() < 2


def test_examples_with_rare_tags_are_repeated_by_the_largest_factor_of_their_tags():
    weighted = Weighted(source(), tags=SEVERAL, balance="repeat", threshold=0.25)
    counts = np.bincount(drawn(weighted, 60 * 100), minlength=60)
    factor = math.sqrt(0.25 * 60)  # one of 60 examples has a bus; cars, in half of the examples, are not rare
    expected = np.where(np.arange(60) == 7, factor, 1) * 6000 / (59 + factor)
    np.testing.assert_allclose(counts, expected, atol=2)
    by_tag = np.bincount(drawn(Weighted(source(), {"bus": 4, "car": 2}, tags=SEVERAL), 95 * 60), minlength=60)
    np.testing.assert_allclose(by_tag[[7, 1, 0]], np.array([4, 2, 1]) * 5700 / (30 + 29 * 2 + 4), atol=2)


def test_weights_and_balance_change_by_time():
    later = {"0 steps": {"0": 1, "1": 0, "2": 0}, "20 steps": {"0": 1, "1": 1, "2": 1}, "4 epochs": "natural"}
    weighted = Weighted(source(), tags="label", balance=later)
    batches = Batches(weighted, 6, 0, True)
    labels = np.concatenate([batches[n].examples["label"] for n in range(100)])
    assert (labels[:120] == 0).all()
    assert np.bincount(labels[120:240]).tolist() == [40, 40, 40]
    assert np.bincount(labels[240:]).tolist() == [240, 90, 30]
    ramp = Weighted(source(), tags="label", balance={"0 steps": "natural", "10 epochs": "class"}, interpolate=True)
    counts = classes(ramp, 12)
    expected = np.linspace([40, 15, 5], [20, 20, 20], 21)[1::2]
    assert np.abs(counts[:10] - expected).max() <= 4  # an epoch has 6.4 blocks
    assert np.abs(counts[:10].sum(axis=0) - expected.sum(axis=0)).max() < 2
    short = Weighted(source(), {"0 steps": {"0": 0}, "1 epoch": {}}, tags="label")
    assert (classes(short, 3)[0, 0], classes(short, 3)[1].tolist()) == (0, [40, 15, 5])


def test_weights_of_examples_change_by_time(tmp_path):
    np.save(tmp_path / "later.npy", np.arange(60)[::-1])
    weights = {"0%": np.arange(60) < 20, "50%": str(tmp_path / "later.npy"), "80%": {}}
    weighted = Weighted(source(), weights).with_run(1200)
    counts = np.bincount(drawn(weighted, 600), minlength=60)
    assert (counts[:20].tolist(), counts[20:].sum()) == ([30] * 20, 0)
    indices = drawn(weighted, 1200)
    np.testing.assert_allclose(np.bincount(indices[600:960], minlength=60), 360 * np.arange(60)[::-1] / 1770, atol=2)
    assert np.bincount(indices[960:]).tolist() == [4] * 60
    tagged = Weighted(source(), {"0 steps": {"bus": 0, "car": 0}, "1 epoch": {"bus": 0, "car": 1}}, tags=SEVERAL)
    assert not {index % 2 for index in drawn(tagged, 60).tolist()} - {0}
    assert np.bincount(drawn(tagged, 120)[60:]).tolist() == [1] * 60
    rare = Weighted(source(), tags=SEVERAL, balance={"0 steps": "natural", "1 epoch": "repeat"}, threshold=0.5)
    assert np.bincount(drawn(rare, 60)).tolist() == [1] * 60
    assert np.bincount(drawn(rare, 120)[60:])[7] == pytest.approx(60 * 30**0.5 / (59 + 30**0.5), abs=1)


def test_weights_of_examples_may_be_arrays_of_jax():
    late = np.arange(60) >= 20
    for weights in (
        {"0 steps": jnp.asarray(late), "1 epoch": jnp.ones(60)},
        {"0 steps": jnp.asarray(late), "1 epoch": {}},
        jnp.asarray(late),
    ):
        assert drawn(Weighted(source(), weights), 60).min() == 20
    shares = {"bus": jnp.float32(0)}  # a number by tag
    with pytest.raises(DataError, match=r"Weighted: weights: .* for bus: allowed are numbers from 0"):
        Weighted(source(), shares, tags=SEVERAL)


SOURCES = [
    Weighted(source(), np.arange(60)),
    Weighted(source(), tags="label", balance="class"),
    Weighted(source(), tags="label", balance={"0 steps": "class", "100 examples": "sqrt"}, interpolate=True),
    Weighted(source(), tags=SEVERAL, balance="repeat", threshold=0.5),
    Weighted(source(), {"0 steps": np.arange(60), "50 examples": {"car": 0}, "7 epochs": {}}, tags=SEVERAL),
    Weighted(source(), {"0 steps": np.arange(60), "5 epochs": np.ones(60)}, interpolate=True),
    Mixture({"a": Weighted(source(), tags="label", balance="class"), "b": source()}, {"a": 2, "b": 1}),
    Mixture({"a": source(), "b": source()}, {"0 steps": {"a": 1, "b": 0}, "9 steps": {"a": 1, "b": 2}}),
]


@given(number=st.integers(0, len(SOURCES) - 1), processes=st.sampled_from([1, 2, 3, 4, 6]), first=st.integers(0, 10**6))
@properties.examples(30)
def test_any_split_among_processes_and_any_start_give_the_same_examples(number, processes, first):
    whole, rows = Batches(SOURCES[number], 12, 3, True), 12 // processes
    parts = [Batches(SOURCES[number], 12, 3, True, slice(i * rows, (i + 1) * rows)) for i in range(processes)]
    for n in (first, first + 1, 2):
        found = np.concatenate([part[n].examples["index"] for part in parts])
        assert found.tolist() == whole[n].examples["index"].tolist()


@pytest.mark.parametrize("weighted", SOURCES)
def test_reading_resumes_at_any_batch_in_any_number_of_threads(weighted):
    plain = Batches(weighted, 12, 0, True)
    unbroken = [plain[n].examples for n in range(40)]
    copy = pickle.loads(pickle.dumps(Batches(weighted, 12, 0, True)))
    for stopped, threads in ((13, 1), (29, 3)):
        reader = read(copy, range(stopped, 40), threads=threads, workers=0, prefetch=2, block=copy.block_size)
        np.testing.assert_equal([batch.examples for batch in reader], unbroken[stopped:])
        reader.close()


def test_order_equals_stored_numbers():
    # Resumed runs rely on this order: never change these numbers.
    by_example = drawn(Weighted(source(), np.arange(60)), 200, seed=7)
    by_tag = drawn(Weighted(source(), tags="label", balance="class"), 200, seed=7)
    assert by_example[[0, 1, 2, 60, 150]].tolist() == [18, 7, 29, 50, 44]
    assert by_tag[[0, 1, 2, 60, 150]].tolist() == [55, 38, 54, 28, 35]


def test_without_shuffle_the_examples_of_a_tag_keep_their_stored_order():
    indices = drawn(Weighted(source(), tags="label", balance="natural"), 60, shuffle=False)
    assert sorted(indices.tolist()) == list(range(60))
    by_example = drawn(Weighted(source(), np.where(LABELS == 1, 2, 1)), 60, shuffle=False)
    assert (np.diff(by_example) >= 0).all()


def test_padded_and_bucketed_sources_draw_by_weight():
    scenes = Scenes()
    weighted = Weighted(scenes, tags=np.array(scenes.sizes) > 6, balance={"False": 1, "True": 3})
    for padded in (
        Padded(weighted, 16, FIELDS),
        Padded(weighted, [4, 16], FIELDS),
        Bucketed(weighted, [4, 16], FIELDS),
    ):
        batches = Batches(padded, 5, 0, True)
        numbers = np.concatenate([batches[n].examples["scene"] for n in range(60)])
        large = np.array(scenes.sizes)[numbers] > 6
        assert abs(large.mean() - 0.75) < 0.02
        assert sum(batches.tag_counts(n).get("True", 0) for n in range(60)) == large.sum()
        counts = np.bincount(numbers, minlength=15)
        assert np.ptp(counts[np.array(scenes.sizes) > 6]) <= 3
    mixed = Mixture({"a": Padded(weighted, 16, FIELDS), "b": Padded(scenes, 16, FIELDS)}, {"a": 1, "b": 1})
    counts = Batches(mixed, 120, 0, True).tag_counts(0)
    assert (counts["a"], counts["b"], counts["a/True"]) == (60, 60, 45)


class Indexed(Scenes):
    def field_lengths(self, names):
        return {name: np.array(self.sizes) for name in names}


class Cropped(Indexed):
    def __getitem__(self, index):
        return super().__getitem__(index)


def test_index_of_lengths_is_used_only_for_the_examples_that_it_describes():
    assert Weighted(Indexed(), np.ones(15)).field_lengths(["x"]) is not None
    assert Weighted(Cropped(), np.ones(15)).field_lengths(["x"]) is None


def test_balanced_deals_weighted_examples_by_the_costs_of_their_source():
    class Costly(ArraySource):
        def costs(self):
            return self.arrays["index"]

    weighted = Weighted(source(kind=Costly), tags="label", balance="class")
    plain, balanced = Batches(weighted, 12, 0, True), Batches(Balanced(weighted, 2), 12, 0, True)
    found = balanced[5].examples["index"]
    assert sorted(found) == sorted(plain[5].examples["index"])
    halves = found.reshape(2, 6).sum(axis=1)
    assert abs(halves[0] - halves[1]) <= 3
    assert balanced.tag_counts(5) == plain.tag_counts(5)


def test_transform_of_the_source_is_applied():
    class Noisy(ArraySource):
        def transform(self, example, rng):
            return {**example, "x": rng.random(dtype=np.float32)}

    batch = Batches(Weighted(source(kind=Noisy), tags="label", balance="class"), 12, 0, True)[1].examples
    assert len(set(batch["x"].tolist())) == 12


def test_evaluation_reads_each_example_once_and_limit_takes_the_first():
    ordered = OrderedBatches(SOURCES[0], 60)
    assert ordered[0].examples["index"].tolist() == list(range(60))
    for weighted in SOURCES[:6]:
        few = limited(weighted, 50)
        assert set(drawn(few, 500).tolist()) <= set(range(50))
        assert len(few) == 50
    few = limited(SOURCES[1], 50)
    assert np.bincount(LABELS[drawn(few, 500)]).tolist() == [250, 250], "the third class is not in this part"
    with pytest.raises(DataError, match=r"data.limit leaves no example with a weight above 0. Raise it."):
        Batches(limited(SOURCES[0], 1), 4, 0, True)
    only = Weighted(source(), tags="label", balance={"0": 0, "1": 1, "2": 1})
    with pytest.raises(DataError, match=r"data.limit leaves no example of the tags that are drawn. Raise it."):
        Batches(limited(only, 20), 4, 0, True)


def test_weights_come_from_files(tmp_path):
    np.save(tmp_path / "weights.npy", np.arange(60))
    np.savez(tmp_path / "weights.npz", other=np.zeros(3), weights=np.arange(60))
    for name in ("weights.npy", "weights.npz"):
        weighted = Weighted(source(), str(tmp_path / name))
        assert drawn(weighted, 60).tolist() == drawn(SOURCES[0], 60).tolist()
        assert weighted.fingerprint() == SOURCES[0].fingerprint()


def test_fingerprint_changes_with_weights_tags_and_times():
    others = [
        *SOURCES[:6],
        Weighted(source(), np.ones(60)),
        Weighted(source(), tags="label", balance="sqrt"),
        Weighted(source(), tags=LABELS[::-1].copy(), balance="class"),
        Weighted(source(), tags="label", balance={"0 steps": "class", "101 examples": "sqrt"}, interpolate=True),
        Weighted(source(), tags="label", balance={"0 steps": "class", "100 examples": "sqrt"}),
        Weighted(source(), tags=SEVERAL, balance="repeat", threshold=0.6),
        Weighted(source(), {"0 steps": np.arange(60), "5 epochs": np.ones(60)}),
        Weighted(source(), {"0 steps": np.arange(60), "6 epochs": np.ones(60)}),
    ]
    assert len({weighted.fingerprint() for weighted in others}) == len(others)
    text = Weighted(source(), {"2": 4}, tags="label").fingerprint().split("; ")[-1]
    assert text.startswith("weights of tags ") and text.endswith(": 2 4")


class Transformed(Weighted):
    def transform(self, example, rng):
        return example


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Weighted(source()), "give either weights or balance. For equal classes: balance='class'"),
        (lambda: Weighted(source(), np.ones(60), balance="class"), "give either weights or balance"),
        (lambda: Weighted(source(), np.ones(59)), r"weights: found float64\[59\]: allowed is one number for each of"),
        (lambda: Weighted(source(), -np.ones(60)), r"weights: allowed are numbers from 0 to 1e\+100, and some above 0"),
        (lambda: Weighted(source(), np.zeros(60)), "and some above 0"),
        (lambda: Weighted(source(), np.full(60, np.nan)), "and some above 0"),
        (lambda: Weighted(source(), "much"), "weights = 'much': allowed are numbers, or a file"),
        (
            lambda: Weighted(source(), {"0 steps": np.ones(60), "1 epoch": np.ones(9)}),
            r"found float64\[9\]: allowed is",
        ),
        (lambda: Weighted(source(), {"0 steps": np.ones(60), "1 epoch": {"0": 2}}), r"ArraySource has no method tags"),
        (lambda: Weighted(source(), balance="class"), r"ArraySource has no method tags\(\). Pass tags="),
        (lambda: Weighted(source(), tags="label", balance="clas"), "found 'clas'. Allowed: .* Did you mean class"),
        (lambda: Weighted(source(), tags="label", balance={"0": 1, "2": 1}), "balance: no share for 1. Give one"),
        (
            lambda: Weighted(source(), {"3": 1}, tags="label"),
            "weights has 3, but no example has that tag. Tags: 0, 1, 2",
        ),
        (lambda: Weighted(source(), {"1": -1}, tags="label"), "weights: -1 for 1: allowed are numbers from 0"),
        (
            lambda: Weighted(source(), tags="label", balance={"0": 0, "1": 0, "2": 0}),
            "no example has a tag whose number",
        ),
        (lambda: Weighted(source(), tags="label", balance="repeat", threshold=0), "threshold = 0: allowed are"),
        (lambda: Weighted(source(), tags=SEVERAL, balance="class"), "examples have several tags, so shares of tags"),
        (lambda: Weighted(SOURCES[6], np.ones(120)), r"Mixture has its own sampler. Weight the examples first: Padded"),
        (lambda: Weighted(Padded(Scenes(), 16, FIELDS), np.ones(15)), r"Padded has its own sampler. Weight the"),
        (lambda: Batches(Transformed(source(), np.ones(60)), 4, 0, True), "Transformed defines transform, but its"),
        (
            lambda: Packed(Weighted(Scenes(), np.ones(15)), 16, fields=FIELDS),
            "Packed: .*Weighted draws some documents more often than others, but a plan has each once. Pack the",
        ),
        (
            lambda: Batches(
                Mixture({"a": Weighted(source(), {"0 steps": {}, "9 steps": {}}, tags="label")}, {"a": 1}), 4, 0, True
            ),
            "weights: '9 steps': a part of a mixture does not know the step.",
        ),
    ],
)
def test_invalid_arguments_raise_data_error(make, text):
    with pytest.raises(DataError, match=text):
        make()
