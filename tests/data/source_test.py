import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.examples import FINGERPRINT_EXAMPLES
from engine.data.sampling.sampler import read_examples
from engine.data.source import ArraySource, BaseSource, example_spec, limited, source_name
from engine.data.source_adapter import check_source


class Squares(BaseSource):
    """A source with only the two required methods."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"value": index**2}


def make(n=6):
    return ArraySource({"x": np.arange(n * 2, dtype=np.float32).reshape(n, 2), "label": np.arange(n)})


def test_array_source_returns_rows_as_examples():
    source = make()
    assert len(source) == 6
    assert source[2]["x"].tolist() == [4, 5]
    assert source[2]["label"] == 2


def test_take_returns_rows_in_the_requested_order():
    batch = make().take(np.array([5, 0, 5]))
    assert batch["label"].tolist() == [5, 0, 5]
    assert batch["x"].tolist() == [[10, 11], [0, 1], [10, 11]]


def test_modifying_an_example_does_not_change_the_source():
    source = make()
    source[1]["x"][:] = -1
    source.take(np.array([1]))["x"][:] = -1
    assert source[1]["x"].tolist() == [2, 3]


def test_array_source_accepts_any_pytree():
    source = ArraySource((np.array([1, 2, 3]), {"y": np.array([0.5, 1.5, 2.5])}))
    assert source[1][0] == 2
    assert source[1][1]["y"] == 1.5


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, "different lengths: x 3, y 4"),
        ({"x": np.zeros(3), "y": np.float32(1)}, "y is a single number"),
        ({"x": [1, 2, 3]}, "x/0 is a single number. Pass numpy arrays, not lists"),
        ({}, "no arrays"),
        ({"when": np.array(["2020-01-01"], "datetime64[D]")}, "when has dtype datetime64"),
        ({"odd": np.array([None, 1])}, "odd has dtype object"),
    ],
)
def test_invalid_arrays_raise_data_error(arrays, text):
    with pytest.raises(DataError, match=r"ArraySource: .*") as error:
        ArraySource(arrays)
    assert text in str(error.value)


def test_limit_keeps_the_first_examples():
    source = limited(make(), 2)
    assert len(source) == 2
    assert source[1]["label"] == 1
    assert read_examples(source, np.array([1, 0]))["label"].tolist() == [1, 0]
    assert source.has_take


def test_limit_not_below_the_length_returns_the_source():
    source = make()
    assert limited(source, None) is source
    assert limited(source, 6) is source
    assert limited(source, 100) is source


@pytest.mark.parametrize("count", [0, -3])
def test_limit_below_one_raises_data_error(count):
    with pytest.raises(DataError, match=rf"data.limit = {count}: allowed are 1 and more, or None"):
        limited(make(), count)


def test_limited_source_keeps_take_and_transform():
    class Noisy(ArraySource):
        def transform(self, example, rng):
            return example

    assert limited(Noisy({"x": np.zeros(4)}), 2).has_transform
    assert not limited(make(), 2).has_transform
    assert not limited(Squares(), 2).has_take
    assert source_name(limited(Squares(), 2)) == source_name(Squares())


def test_limited_source_keeps_the_lengths_and_costs_of_its_examples():
    class Measured(Squares):
        def lengths(self):
            return {"agents": list(range(len(self))), "lanes": np.full(len(self), 7)}

        def costs(self):
            return np.arange(len(self)) / 2

    source: Any = limited(Measured(), 2)
    assert {axis: values.tolist() for axis, values in source.lengths().items()} == {"agents": [0, 1], "lanes": [7, 7]}
    assert source.costs().tolist() == [0, 0.5]
    assert limited(Squares(), 2).lengths() is None


def test_source_can_define_limited():
    class Last(ArraySource):
        def limited(self, count):
            return ArraySource({name: array[-count:] for name, array in self.arrays.items()})

    assert limited(Last(make().arrays), 2)[0]["label"] == 4
    assert len(limited(Last(make().arrays), 6)) == 6


class Endless(Squares):
    def __len__(self) -> Any:
        return None


class Negative(Squares):
    def __len__(self) -> Any:
        return -1


class Unsized:
    def __getitem__(self, index):
        return {"x": index}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {"folder": "x"},
            "a dict, allowed is a source. Pass a dict of arrays to engine.ArraySource; in a config,",
        ),
        (None, "None, allowed is a source: an object with __len__ and __getitem__."),
        (3, "a int without __len__ and __getitem__, allowed is a source"),
        (Unsized(), "a Unsized without __len__, allowed is a source"),
        (
            iter([{"x": 1}]),
            "a list_iterator without __len__ and __getitem__, allowed is a source: an object with __len__ and "
            "__getitem__. It can only be iterated, but here examples are read by index",
        ),
        (Squares, "the class Squares, not an object of it"),
    ],
)
def test_object_that_is_not_a_source_raises_data_error(found, text):
    with pytest.raises(DataError, match=re.escape(f"data.a: found {text}")):
        check_source(found, "data.a")
    for broken in (Endless(), Negative()):
        with pytest.raises(DataError, match=r"^data.a: its __len__ failed: \w+Error: "):
            check_source(broken, "data.a")
    check_source(Squares(), "data.a")
    check_source([{"x": 1}], "data.a")


def test_inherited_take_is_not_used_with_an_overridden_getitem():
    class Scaled(ArraySource):
        def __getitem__(self, index):
            return {"x": super().__getitem__(index)["x"] / 255}

    class ScaledTwice(Scaled):
        def take(self, indices):
            return {"x": super().take(indices)["x"] / 255}

    arrays = {"x": np.zeros((3, 2))}
    assert ArraySource(arrays).has_take
    assert not Scaled(arrays).has_take
    assert ScaledTwice(arrays).has_take


def test_subclass_may_assign_what_the_engine_reads_of_a_source():
    class Assigned(BaseSource):
        def __init__(self):
            self.tag_names, self.measured = ("day", "night"), False
            self.is_weighted, self.has_sampler, self.has_new_arrays = True, True, True

    assigned, plain = Assigned(), BaseSource()
    names = ("tag_names", "measured", "is_weighted", "has_sampler", "has_new_arrays")
    assert [getattr(assigned, name) for name in names] == [("day", "night"), False, True, True, True]
    assert [getattr(plain, name) for name in names] == [(), True, False, False, False]


def test_spec_has_device_shapes_and_dtypes():
    spec = example_spec(ArraySource({"x": np.zeros((3, 8, 2)), "n": np.zeros(3, np.int64), "b": np.zeros(3, np.uint8)}))
    assert (spec["x"].shape, spec["x"].dtype) == ((8, 2), np.float32)
    assert (spec["n"].shape, spec["n"].dtype) == ((), np.int32)
    assert spec["b"].dtype == np.uint8
    assert example_spec(Squares())["value"].dtype == np.int32


def test_spec_error_names_an_unsupported_dtype():
    class Texts(Squares):
        def __getitem__(self, index):
            return {"meta": {"when": np.datetime64("2020-01-01")}}

    with pytest.raises(DataError, match=r"Texts\[0\]: meta/when has dtype datetime64\[D\]: allowed are"):
        example_spec(Texts())


def test_spec_of_an_empty_or_unreadable_source_raises_data_error():
    with pytest.raises(DataError, match=r"no examples. A source needs at least one"):
        example_spec(ArraySource({"x": np.zeros((0, 2))}))

    class Nothing(Squares):
        def __getitem__(self, index):
            return {}

    with pytest.raises(DataError, match=r"Nothing\[0\] holds no arrays"):
        example_spec(Nothing())

    class Broken(Squares):
        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(DataError, match=r"Broken\[0\] failed: OSError: disk gone \(.*source_test.py:\d+ in __ge"):
        example_spec(Broken())


def test_fingerprint_depends_on_content():
    assert make().fingerprint() == make().fingerprint()
    assert make().fingerprint() != make(7).fingerprint()
    changed = make()
    changed.arrays["x"][3, 1] += 1
    assert changed.fingerprint() != make().fingerprint()
    assert limited(make(), 3).fingerprint() != make().fingerprint()
    retyped = ArraySource({"x": make().arrays["x"], "label": np.arange(6, dtype=np.int32)})
    assert retyped.fingerprint() != make().fingerprint()


def test_fingerprint_of_a_stored_source_reads_a_sample():
    class Stored(BaseSource):
        def __init__(self, **changed):
            self.read, self.changed = [], changed

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            self.read.append(index)
            if index == 999:
                raise OSError("bad sector")
            return {"x": np.float32(self.changed.get(str(index), index))}

    source = Stored()
    found = source.fingerprint()
    assert len(source.read) <= FINGERPRINT_EXAMPLES + 2 and {0, 999} <= set(source.read)
    assert Stored().fingerprint() == found
    assert Stored(**{str(source.read[5]): 0.5}).fingerprint() != found


def test_fingerprint_says_when_readings_differ():
    class Dice(BaseSource):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"x": np.random.default_rng().random()}

    assert Dice().fingerprint() == Dice().fingerprint() == "6 examples that differ from one reading to the next"


def test_source_can_define_its_own_fingerprint():
    class Named(Squares):
        def fingerprint(self):
            return "squares-1"

    assert Named().fingerprint() == "squares-1"
    assert limited(Named(), 2).fingerprint() == "squares-1[:2]"


def test_importing_source_does_not_import_jax():
    code = "import sys, engine.data.source; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=180).returncode == 0
