import subprocess
import sys

import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data.sampler import gather
from engine.data.source import (
    SAMPLED,
    ArraySource,
    check_source,
    example_spec,
    fingerprint,
    has_take,
    has_transform,
    limited,
    name_of,
)


class Squares:
    """A source with the two methods that every source needs."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"value": index**2}


def make(n=6):
    return ArraySource({"x": np.arange(n * 2, dtype=np.float32).reshape(n, 2), "label": np.arange(n)})


def test_arrays_are_examples_by_row():
    source = make()
    assert len(source) == 6
    assert source[2]["x"].tolist() == [4, 5]
    assert source[2]["label"] == 2


def test_take_gives_rows_in_the_order_asked_for():
    batch = make().take(np.array([5, 0, 5]))
    assert batch["label"].tolist() == [5, 0, 5]
    assert batch["x"].tolist() == [[10, 11], [0, 1], [10, 11]]


def test_what_is_read_may_be_written_to_without_changing_the_source():
    source = make()
    source[1]["x"][:] = -1
    source.take(np.array([1]))["x"][:] = -1
    assert source[1]["x"].tolist() == [2, 3]


def test_any_pytree_is_taken():
    source = ArraySource((np.array([1, 2, 3]), {"y": np.array([0.5, 1.5, 2.5])}))
    assert source[1][0] == 2
    assert source[1][1]["y"] == 1.5


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, "different lengths: x 3, y 4"),
        ({"x": np.zeros(3), "y": np.float32(1)}, "y is a single number"),
        ({"x": [1, 2, 3]}, "x/0 is a single number. Give numpy arrays, not lists"),
        ({}, "no arrays"),
        ({"name": np.array(["a", "b"])}, "name has dtype <U1: allowed are bool, integers"),
        ({"when": np.array(["2020-01-01"], "datetime64[D]")}, "when has dtype datetime64"),
        ({"odd": np.array([None, 1])}, "odd has dtype object"),
    ],
)
def test_arrays_that_are_no_source_are_refused_by_name(arrays, text):
    with pytest.raises(DataError, match=r"ArraySource: .*") as error:
        ArraySource(arrays)
    assert text in str(error.value)


def test_a_limit_keeps_the_first_examples():
    source = limited(make(), 2)
    assert len(source) == 2
    assert source[1]["label"] == 1
    assert gather(source, np.array([1, 0]))["label"].tolist() == [1, 0]
    assert has_take(source)


def test_a_limit_keeps_the_source_where_it_is_not_smaller():
    source = make()
    assert limited(source, None) is source
    assert limited(source, 6) is source
    assert limited(source, 100) is source


@pytest.mark.parametrize("count", [0, -3])
def test_a_limit_below_one_is_refused(count):
    with pytest.raises(DataError, match=rf"data.limit = {count}: allowed are 1 and more, or None"):
        limited(make(), count)


def test_a_limit_takes_over_what_the_source_can_do_and_no_more():
    class Noisy(ArraySource):
        def transform(self, example, rng):
            return example

    assert has_transform(limited(Noisy({"x": np.zeros(4)}), 2))
    assert not has_transform(limited(make(), 2))
    assert not has_take(limited(Squares(), 2))
    assert name_of(limited(Squares(), 2)) == name_of(Squares())


def test_a_source_may_choose_what_a_limit_takes():
    class Last(ArraySource):
        def limited(self, count):
            return ArraySource({name: array[-count:] for name, array in self.arrays.items()})

    assert limited(Last(make().arrays), 2)[0]["label"] == 4
    assert len(limited(Last(make().arrays), 6)) == 6


@pytest.mark.parametrize("found", [{"folder": "x"}, None, 3])
def test_what_is_no_source_is_refused_with_what_to_write_instead(found):
    text = rf"data.a: found {type(found).__name__}, allowed is a source: .*\{{'target': 'package.module.Name', ...\}}"
    with pytest.raises(DataError, match=text):
        check_source(found, "data.a")
    check_source(Squares(), "data.a")
    check_source([{"x": 1}], "data.a")


def test_a_take_that_was_inherited_does_not_hide_a_changed_getitem():
    class Scaled(ArraySource):
        def __getitem__(self, index):
            return {"x": super().__getitem__(index)["x"] / 255}

    class ScaledTwice(Scaled):
        def take(self, indices):
            return {"x": super().take(indices)["x"] / 255}

    arrays = {"x": np.zeros((3, 2))}
    assert has_take(ArraySource(arrays))
    assert not has_take(Scaled(arrays))
    assert has_take(ScaledTwice(arrays))


def test_a_spec_has_the_shapes_and_the_dtypes_that_devices_get():
    spec = example_spec(ArraySource({"x": np.zeros((3, 8, 2)), "n": np.zeros(3, np.int64), "b": np.zeros(3, np.uint8)}))
    assert (spec["x"].shape, spec["x"].dtype) == ((8, 2), np.float32)
    assert (spec["n"].shape, spec["n"].dtype) == ((), np.int32)
    assert spec["b"].dtype == np.uint8
    assert example_spec(Squares())["value"].dtype == np.int32


def test_a_spec_names_what_cannot_go_to_a_device():
    class Texts(Squares):
        def __getitem__(self, index):
            return {"meta": {"name": "a"}}

    with pytest.raises(DataError, match=r"Texts\[0\]: meta/name has dtype <U1: allowed are"):
        example_spec(Texts())


def test_a_spec_says_when_there_is_nothing_to_read():
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

    with pytest.raises(DataError, match=r"Broken\[0\] failed: OSError: disk gone"):
        example_spec(Broken())


def test_a_fingerprint_follows_the_content():
    assert fingerprint(make()) == fingerprint(make())
    assert fingerprint(make()) != fingerprint(make(7))
    changed = make()
    changed.arrays["x"][3, 1] += 1
    assert fingerprint(changed) != fingerprint(make())
    assert fingerprint(limited(make(), 3)) != fingerprint(make())
    retyped = ArraySource({"x": make().arrays["x"], "label": np.arange(6, dtype=np.int32)})
    assert fingerprint(retyped) != fingerprint(make())


def test_a_fingerprint_of_what_is_not_in_memory_is_a_sample_of_it():
    class Stored:
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
    found = fingerprint(source)
    assert len(source.read) <= SAMPLED + 2 and {0, 999} <= set(source.read)
    assert fingerprint(Stored()) == found
    assert fingerprint(Stored(**{str(source.read[5]): 0.5})) != found


def test_examples_that_are_new_at_each_reading_cannot_be_compared_and_are_not():
    class Dice:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"x": np.random.default_rng().random()}

    assert fingerprint(Dice()) == fingerprint(Dice()) == "6 examples that differ from one reading to the next"


def test_a_source_may_name_its_own_content():
    class Named(Squares):
        def fingerprint(self):
            return "squares-1"

    assert fingerprint(Named()) == "squares-1"
    assert fingerprint(limited(Named(), 2)) == "squares-1[:2]"


def test_the_interface_is_imported_without_jax():
    code = "import sys, engine.data.source; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
