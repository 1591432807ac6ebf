import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.packing import Packed, is_packed
from engine.data.reader import read
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, BaseSource, example_spec, limited

LENGTHS = [3, 0, 21, 1, 8, 5, 5, 12, 2, 7, 4, 1, 6, 3, 9]
TOTAL = sum(LENGTHS)


class Documents(BaseSource):
    """Documents whose tokens are numbered across all documents, so that each token identifies its origin."""

    def __init__(self, lengths=LENGTHS):
        self.ends = np.cumsum(lengths)
        self.sizes = lengths

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return {"tokens": np.arange(self.sizes[index]) + self.ends[index] - self.sizes[index]}


def batches(split=True, size=4, seed=0, shuffle=True, rows=None):
    return Batches(Packed(Documents(), 8, split=split), size, seed, shuffle, rows)


def epoch(split, number, **kwargs):
    """Returns all rows of an epoch as one batch."""
    return batches(split, size=len(Packed(Documents(), 8, split=split)), **kwargs)[number].examples


def same(one, two):
    np.testing.assert_equal(one, two)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_every_token_is_read_exactly_once_per_epoch(split, number):
    found = epoch(split, number)
    assert np.sort(found["tokens"][found["segment_ids"] > 0]).tolist() == list(range(TOTAL))


@pytest.mark.parametrize("split", [True, False])
def test_target_is_the_next_token_of_the_document(split):
    rows = epoch(split, 2)
    lasts = Documents().ends - 1
    inside = rows["segment_ids"] > 0
    weighed = inside & ~np.isin(rows["tokens"], lasts)
    assert (rows["weight"] == weighed).all()
    assert (rows["targets"][weighed] == rows["tokens"][weighed] + 1).all()
    assert weighed.sum() == sum(max(0, length - 1) for length in LENGTHS)


@pytest.mark.parametrize("split", [True, False])
def test_segments_are_numbered_and_positions_restart(split):
    for tokens, segments, positions in zip(
        *(epoch(split, 1)[name] for name in ("tokens", "segment_ids", "positions")), strict=True
    ):
        documents = np.searchsorted(Documents().ends, tokens, side="right")
        number = int(segments.max())
        assert np.unique(segments[segments > 0]).tolist() == list(range(1, number + 1))
        for segment in range(1, number + 1):
            piece = segments == segment
            assert len(set(documents[piece])) == 1
            assert positions[piece].tolist() == list(range(piece.sum()))
        padding = segments == 0
        assert not tokens[padding].any() and not positions[padding].any()
        assert (np.diff(padding.astype(int)) >= 0).all()  # padding is at the end


def test_row_is_a_dict_of_arrays_of_the_row_length():
    packed = Packed(Documents([3, 2, 6]), 4)
    assert len(packed) == 3
    assert {name: spec.dtype.name for name, spec in example_spec(packed).items()} == {
        "positions": "int32",
        "segment_ids": "int32",
        "targets": "int32",
        "tokens": "int32",
        "weight": "float32",
    }
    assert {name: row.tolist() for name, row in packed[1].items()} == {
        "tokens": [4, 5, 6, 7],
        "targets": [0, 6, 7, 8],  # the last target is in the next row
        "segment_ids": [1, 2, 2, 2],
        "positions": [0, 0, 1, 2],
        "weight": [0, 1, 1, 1],
    }


def test_splitting_fills_every_row_but_the_last():
    packed = Packed(Documents(), 8)
    assert len(packed) == -(-TOTAL // 8)
    for number in range(3):
        padding = np.sort((epoch(True, number)["segment_ids"] == 0).sum(axis=1))
        assert padding.tolist() == [0] * (len(packed) - 1) + [-TOTAL % 8]


def test_without_splitting_a_document_that_fits_a_row_stays_whole():
    rows = epoch(False, 1)
    for row, segments in zip(rows["tokens"], rows["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            piece = row[segments == segment]
            document = int(np.searchsorted(Documents().ends, piece[0], side="right"))
            assert len(piece) == LENGTHS[document] or LENGTHS[document] > 8


@pytest.mark.parametrize("split", [True, False])
def test_epochs_and_seeds_are_packed_differently(split):
    found = [epoch(split, number, seed=seed)["tokens"] for seed in (0, 1) for number in (0, 1)]
    row_sets = [{tuple(row) for row in rows.tolist()} for rows in found]
    for i, one in enumerate(found):
        for j in range(i):
            assert one.tolist() != found[j].tolist()
            assert row_sets[i] != row_sets[j]  # different rows, not only a different order


def test_packing_equals_stored_numbers():
    # Resumed runs rely on this packing: never change these numbers.
    assert batches(True)[40].examples["tokens"][:, 0].tolist() == [5, 28, 46, 21]
    assert batches(False)[40].examples["tokens"][:, 0].tolist() == [69, 11, 25, 38]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_all_processes_form_the_global_batch(split, processes):
    whole, rows = batches(split), 4 // processes
    parts = [batches(split, rows=slice(i * rows, (i + 1) * rows)) for i in range(processes)]
    for n in (0, 3, 50):
        for name, expected in whole[n].examples.items():
            assert np.concatenate([part[n].examples[name] for part in parts]).tolist() == expected.tolist()


@pytest.mark.parametrize("split", [True, False])
def test_reading_resumes_at_any_batch_with_any_number_of_threads(split):
    reader = read(batches(split), range(12), threads=0, workers=0, prefetch=0)
    unbroken = [batch.examples for batch in reader]
    for stopped, threads in ((5, 1), (7, 3)):
        reader = read(batches(split), range(stopped, 12), threads=threads, workers=0, prefetch=2)
        same([batch.examples for batch in reader], unbroken[stopped:])
        reader.close()


def test_threads_and_pickled_copies_make_equal_rows_over_many_epochs():
    plain, copy = batches(False), pickle.loads(pickle.dumps(batches(False)))
    numbers = list(np.random.default_rng(0).permutation(100))
    with ThreadPoolExecutor(8) as pool:
        found = [batch.examples for batch in pool.map(copy.__getitem__, numbers)]
    same(found, [plain[n].examples for n in numbers])


def test_evaluation_reads_documents_in_stored_order():
    packed = Packed(Documents(), 8)
    ordered = OrderedBatches(packed, 4)
    rows = np.concatenate([ordered[n].examples["tokens"] for n in range(len(ordered))])[: len(packed)]
    assert rows.reshape(-1)[:TOTAL].tolist() == list(range(TOTAL))
    same(batches(shuffle=False, size=len(packed))[1].examples["tokens"], rows)  # training without shuffle: the same


def test_sizes_of_no_rows_are_empty():
    sizes = Packed(Documents(), 8).sampler(0, True).sizes(np.zeros(0, np.int64))
    assert [part.tolist() for part in sizes] == [[], [], []]


def test_limit_takes_the_first_rows():
    few = limited(Packed(Documents(), 8), 3)
    found = Batches(few, 3, 0, True)[1].examples["tokens"]
    assert np.sort(found.reshape(-1)).tolist() == list(range(24))


def test_subclass_can_add_a_random_transform():
    class Noisy(Packed):
        def transform(self, row, rng):
            return {**row, "tokens": row["tokens"] + 1000 * rng.integers(1, 9)}

    plain = batches()[5].examples["tokens"]
    noisy = Batches(Noisy(Documents(), 8), 4, 0, True)[5].examples["tokens"]
    assert (noisy % 1000 == plain).all()
    assert (noisy >= 1000).all()


def test_documents_with_lengths_are_not_read_to_measure_them():
    class Indexed(Documents):
        def __getitem__(self, index):
            raise AssertionError

        def lengths(self):
            return self.sizes

    assert len(Packed(Indexed(), 8)) == -(-TOTAL // 8)
    same(Packed(Documents(), 8, lengths=LENGTHS)[2], Packed(Documents(), 8)[2])


def test_fingerprint_depends_on_documents_and_packing():
    packings = [Packed(Documents(), 8), Packed(Documents(), 9), Packed(Documents(), 8, split=False)]
    packings.append(Packed(Documents(LENGTHS[1:]), 8))
    assert len({packed.fingerprint() for packed in packings}) == 4
    assert Packed(Documents(), 8).fingerprint() == packings[0].fingerprint()


class Odd(Documents):
    def __init__(self, document, lengths=LENGTHS):
        super().__init__(lengths)
        self.document = document

    def __getitem__(self, index):
        return self.document if index == 3 else super().__getitem__(index)


class Transformed(Documents):
    def transform(self, example, rng):
        return example


@pytest.mark.parametrize(
    ("documents", "kwargs", "text"),
    [
        (Documents(), {"length": 0}, "length = 0: allowed are 1 token and more"),
        (Documents([]), {}, "no documents. Packing needs at least one"),
        (Documents([0, 0]), {}, "all 2 documents are empty"),
        (Odd({"text": 1, "id": 2}), {}, r"Document 3 of .*Odd has no `tokens`, found text, id. A document is a dict"),
        (Odd([1, 2]), {}, r"Document 3 of .*Odd has no `tokens`, found list"),
        (Odd({"tokens": np.ones(3)}), {}, r"Document 3 of .*: tokens has shape \[3\] and dtype float64: allowed are"),
        (Odd({"tokens": np.ones((3, 2), int)}), {}, r"tokens has shape \[3, 2\] and dtype int64"),
        (Odd({"tokens": np.array([1, 2**31])}), {}, r"Document 3 of .*: tokens from 1 to 2147483648 do not fit int32"),
        (
            Odd({"tokens": np.array([1, 256], np.uint16)}),
            {"vocabulary": 256},
            r"Document 3 of .*: token 1 has the id 256, but vocabulary = 256: allowed are ids from 0 to 255\. Use the",
        ),
        (Odd({"tokens": np.array([-1])}), {"vocabulary": 99}, r"token 0 has the id -1, but vocabulary = 99"),
        (Documents(), {"fields": ["tokens"], "vocabulary": 9}, "vocabulary = 9: only token documents have one"),
        (Documents(), {"lengths": [1, 2]}, r"the length index has shape \[2\], dtype int64.* each of the 15 documents"),
        (Documents(), {"lengths": [-1] * 15}, "minimum -1. Allowed are integers of at least 0"),
        (Transformed(), {}, r"Transformed has a transform, .*Define it as transform\(row, rng\) in a subclass of Pack"),
        (
            {"folder": "x"},
            {},
            r"Packed: documents: found a dict, allowed is a source.*\{'target': 'package.module.Name'",
        ),
        (
            Mixture({"a": ArraySource({"tokens": np.ones((4, 3), int)})}, {"a": 1}),
            {},
            r"Mixture has its own sampler, .*then mix: Mixture\(\{NAME: Packed\(...\), ...\}, weights\)",
        ),
    ],
)
def test_invalid_documents_raise_data_error(documents, kwargs, text):
    with pytest.raises(DataError, match=text):
        Packed(documents, **{"length": 8, **kwargs})


def test_packed_rows_are_found_inside_of_other_sources():
    class Listed(ArraySource):
        sources = ("a.bin", "b.bin")  # names of its own, not sources as of a mixture

    packed, plain = Packed(Documents(), 8), Listed({"x": np.arange(4)})
    assert is_packed(limited(packed, 2))
    assert is_packed(Mixture({"a": packed}, {"a": 1}))
    assert not is_packed(plain)
    assert not is_packed(Mixture({"a": plain}, {"a": 1}))


def test_error_names_an_unreadable_or_changed_document():
    class Broken(Documents):
        def lengths(self):
            return LENGTHS

        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(
        DataError,
        match=r"^Document \d+ of .*Broken: OSError: disk gone \(.*:\d+ in __getitem__\)\. Read it with documents",
    ):
        Batches(Packed(Broken(), 8), 4, 0, True)[0]
    wrong = [4, *LENGTHS[1:]]
    with pytest.raises(DataError, match=r"Document 0 of .* has 3 tokens, but its length index says 4. Compute the"):
        Packed(Documents(), 8, lengths=wrong)[0]
    packed = Packed(Odd({"tokens": np.array([98])}), 8, lengths=LENGTHS, vocabulary=98)
    with pytest.raises(DataError, match=r"Document 3 of .*: token 0 has the id 98, but vocabulary = 98"):
        packed.take(np.arange(len(packed)))


def test_packed_sources_are_found_inside_of_others():
    packed = Packed(Documents(), 8)
    assert is_packed(Mixture({"a": packed}, {"a": 1}))
    assert not is_packed(Documents())

    class Own(Documents):
        source, sources = "documents.txt", ["a.txt", "b.txt"]

    assert not is_packed(Own())
