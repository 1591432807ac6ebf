import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data import collate
from engine.data.batches import Batches
from engine.data.collate import Collator, own_copy, stack_examples
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, BaseSource, limited
from tests.properties import examples as cases

DTYPES = [np.uint8, np.int32, np.int64, np.float32, np.float64, bool, np.dtype(">f4")]


def collated(rows):
    collator = Collator(len(rows))
    for row in rows:
        collator.add(row)
    return collator.batch(lambda row: f"row {row}")


@cases(60)
@given(
    least=st.sampled_from([0, 16, 2**20]),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4),
    shape=st.sampled_from([(), (2,), (3, 1), (0, 2)]),
    kind=st.sampled_from(["arrays", "numbers", "text"]),
)
def test_collated_rows_are_those_of_stacking(least, dtypes, shape, kind):
    rows = []
    for number, dtype in enumerate(dtypes):
        array = np.full(shape, number + 1, dtype)
        extra = {"arrays": array.T, "numbers": number, "text": f"name {number}"}[kind]
        rows.append({"x": array, "y": (extra, None)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collate, "LEAST_BYTES", least)
        found = collated(rows)
    expected = stack_examples(rows, str)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_error_names_the_first_example_of_another_shape():
    with pytest.raises(DataError, match=r"Example row 2 has x \[3\], example row 0 has x \[2\]"):
        collated([{"x": np.zeros(n)} for n in (2, 2, 3)])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (None, "x None"),
        (np.array([None, 1.0]), "x objects"),
        (np.array(["2026-01-01"] * 2, "datetime64[D]"), r"x datetime64\[D\]s"),
    ],
)
def test_error_names_an_example_without_numbers(other, text):
    rows = [{"x": np.zeros(2)}, {"x": other}]
    with pytest.raises(DataError, match=rf"^Example 1 has {text}, example 0 has x \[2\]\. Bring"):
        stack_examples(rows, str)


def test_own_copy_gives_numbers_as_rows_of_arrays_do():
    array = np.zeros(2)
    copy = own_copy({"x": array, "n": 3, "flag": True, "name": "a"})
    copy["x"][:] = 1
    assert array.tolist() == [0, 0]
    assert (type(copy["n"]), type(copy["flag"]), copy["name"]) == (np.int64, np.bool_, "a")


def test_new_arrays_are_copied_only_if_they_cannot_be_written():
    written, text = np.zeros(2), np.array(["a"], object)
    fixed = np.ones(2)
    fixed.setflags(write=False)
    example = own_copy({"x": written, "y": (written, fixed, text), "n": 3}, new_arrays=True)
    assert example["x"] is written
    assert example["y"][0] is written
    assert example["y"][1].flags.writeable
    assert example["y"][1].tolist() == [1, 1]
    assert type(example["n"]) is np.int64


def test_declaration_of_new_arrays_does_not_count_for_an_overridden_method():
    def arrays():
        return ArraySource({"x": np.zeros(4)})

    class Cached(ArraySource):
        def __getitem__(self, index):
            return {}

    class Declared(Cached):
        new_arrays = True

    assert arrays().has_new_arrays
    assert limited(arrays(), 2).has_new_arrays
    assert not Cached({"x": np.zeros(4)}).has_new_arrays
    assert Declared({"x": np.zeros(4)}).has_new_arrays


class Stored(BaseSource):
    """Examples in memory, given without a copy."""

    def __init__(self, size):
        self.rows = np.arange(4 * size, dtype=np.float32).reshape(size, 4)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"x": self.rows[index], "label": index}

    def transform(self, example, rng):
        assert type(example["label"]) is np.int64
        example["x"] += rng.random(4, dtype=np.float32)
        return example


class Taken(Stored):
    """The same examples, read by `take`."""

    def take(self, indices):
        return {"x": self.rows[indices], "label": indices}


@pytest.mark.parametrize("least", [0, 2**20])
@pytest.mark.parametrize("mixed", [False, True])
def test_batches_read_one_by_one_equal_those_of_take_and_leave_the_source_as_it_is(mixed, least, monkeypatch):
    monkeypatch.setattr(collate, "LEAST_BYTES", least)

    def batches(kind):
        source = kind(20)
        if mixed:
            source = Mixture({"a": source, "b": kind(30)}, {"a": 2, "b": 1})
        return Batches(source, 8, seed=3, shuffle=True)

    one, two = batches(Stored), batches(Taken)
    for n in (0, 1, 4, 0):
        for name in ("x", "label"):
            assert one[n].examples[name].tobytes() == two[n].examples[name].tobytes()


def test_transform_may_bring_examples_of_different_shapes_to_one():
    class Ragged(ArraySource):
        def __getitem__(self, index):
            return {"x": np.full(3 + index, index, np.float32)}

        def transform(self, example, rng):
            return {"x": example["x"][:2]}

    batch = Batches(Ragged({"x": np.zeros(4)}), 4, seed=0, shuffle=False)[0]
    assert batch.examples["x"].tolist() == [[n, n] for n in range(4)]
