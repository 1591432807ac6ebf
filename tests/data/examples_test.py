import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.examples import check_numbers, content_of, evenly_spaced, leaves_with_path, sample_fingerprint


def test_paths_of_leaves_join_the_names_of_entries():
    assert [path for path, _ in leaves_with_path({"camera": [{"image": 1}, 2]})] == ["camera/0/image", "camera/1"]
    assert leaves_with_path(3) == [("the example", 3)]


def test_only_dtypes_that_devices_support_are_numbers():
    check_numbers(np.dtype("float32"), "x")
    with pytest.raises(DataError, match="x has dtype object: allowed are bool, integers"):
        check_numbers(np.dtype(object), "x")


def test_evenly_spaced_indices_include_the_first_and_the_last():
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(3, 8) == [0, 1, 2]


def test_fingerprint_depends_on_the_examples_and_their_number():
    same = [sample_fingerprint(3, lambda index: {"x": index}) for _ in range(2)]
    others = [sample_fingerprint(4, lambda index: {"x": index}), sample_fingerprint(3, lambda index: {"y": index})]
    assert len({*same, *others}) == 3


def test_examples_that_change_or_cannot_be_read_have_a_fingerprint():
    random = np.random.default_rng(0)
    assert "differ from one reading to the next" in sample_fingerprint(3, lambda index: random.random())
    assert content_of(lambda: 1 / 0) == b"cannot be read"
