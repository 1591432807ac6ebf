import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.datasets.statistics import Statistics, histogram, quantiles, structure, structure_text
from tests import properties

VALUES = st.sampled_from([0.0, 1.5, -2.0, float("nan"), float("inf")])


@st.composite
def example(draw):
    rows = draw(st.integers(0, 3))
    return {
        "x": np.array([draw(VALUES) for _ in range(rows)], np.float32).reshape(rows, 1),
        "label": np.int64(draw(st.integers(0, 400))),
        "flags": np.array([True, draw(st.booleans())]),
        "name": draw(st.sampled_from(["a", "b"])),
    }


def measure(examples, start):
    found = Statistics()
    hashes = [(start + i, found.add(start + i, each)) for i, each in enumerate(examples)]
    found.examples = len(examples)
    if hashes:
        found.hashes.append(np.array(hashes, np.uint64))
    return found


@properties.examples(60)
@given(st.lists(example(), min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_merged_statistics_equal_those_of_all_examples_at_once(examples, one, two):
    whole, merged = measure(examples, 0), Statistics()
    cuts = [0, *sorted(min(cut, len(examples)) for cut in (one, two)), len(examples)]
    for start, stop in itertools.pairwise(cuts):
        merged.merge(measure(examples[start:stop], start))
    assert merged.fields == whole.fields
    assert (merged.examples, merged.sizes) == (whole.examples, whole.sizes)
    assert merged.duplicates() == whole.duplicates()


def test_statistics_of_fields():
    labels = [0, 0, 1, 0, 2, 0]
    examples = [
        {"x": np.full((n % 3 + 1, 2), np.nan if n == 4 else n, np.float32), "y": labels[n], "one": 1, "name": f"{n}"}
        for n in range(6)
    ]
    found = measure(examples, 10).fields
    assert (found["x"].minimum, found["x"].maximum) == (0.0, 5.0)
    assert (found["x"].not_finite, found["x"].first_not_finite) == (1, [14])
    assert found["x"].lengths() == {1: 2, 2: 2, 3: 2}
    assert found["y"].labels() == {0: 4, 1: 1, 2: 1}
    assert found["one"].is_constant() and found["one"].labels() is None
    assert found["name"].dtype == "text" and not found["name"].is_constant()


@pytest.mark.parametrize("dtype", ["int4", "uint4", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_statistics_of_dtypes_of_jax(dtype):
    values = np.array([[0, 1], [3, 1], [3, 0]]).astype(jnp.dtype(dtype))
    found = measure([{"x": row, "y": row[0]} for row in values], 0).fields
    assert (found["x"].minimum, found["x"].maximum, found["x"].not_finite) == (0, 3, 0)
    assert found["x"].dtype == dtype
    if "int" in dtype:
        assert found["x"].classes == {0: 2, 1: 2, 3: 2} and found["y"].labels() is None
    else:
        assert found["x"].classes is None
        bad = np.array([1, np.nan]).astype(jnp.dtype(dtype))
        assert measure([{"x": bad}], 7).fields["x"].first_not_finite == [7]


def test_many_different_integers_are_no_classes():
    found = measure([{"id": n} for n in range(300)], 0).fields["id"]
    assert found.classes is None and found.labels() is None
    assert measure([{"id": n} for n in range(10)], 0).fields["id"].labels() is None


def test_duplicates_name_the_first_equal_example():
    examples = [{"x": np.float32(value)} for value in (1, 2, 1, 3, 2, 1)]
    assert measure(examples, 0).duplicates() == (3, [(0, 2), (1, 4), (0, 5)])
    other = [{"x": np.float32(1)}, {"x": np.int32(0x3F800000)}, {"y": np.float32(1)}]
    assert measure(other[:1] + other[2:], 0).duplicates() == (0, [])


def test_histogram_counts_every_value_once():
    counts = measure([{"x": np.zeros(n, np.uint8)} for n in (3, 3, 4, 10, 50)], 0).sizes
    bins = histogram(counts, 4)
    assert bins == [(3, 14, 4), (15, 26, 0), (27, 38, 0), (39, 50, 1)]
    assert quantiles(counts, (0, 0.5, 1)) == [3, 4, 50]


def test_structure_has_paths_dtypes_and_dimensions():
    found = structure({"a": [np.zeros((2, 3), np.uint8)], "b": "text", "c": 1.0})
    assert structure_text(found) == "a/0 uint8[?, ?], b text, c float64"
