"""A description of a feature becomes its dtype, shape and default, and text keeps its zeros."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.tf_features import Feature, as_objects, feature_entry, parse_feature


def test_descriptions_are_parsed():
    assert parse_feature("x", "int8") == Feature("int8", ())
    assert parse_feature("x", ("float32", [None, 3], 0.5)) == Feature("float32", (None, 3), 0.5)
    with pytest.raises(DataError, match="feature 'x': unknown dtype 'int9'"):
        parse_feature("x", "int9")


def test_missing_feature_has_its_default_or_no_elements():
    assert feature_entry("x", Feature("float32", (2,), 0.5), None).tolist() == [0.5, 0.5]
    assert feature_entry("x", Feature("int8", (None, 3)), None).shape == (0, 3)
    with pytest.raises(DataError, match=r"feature 'x' is missing.*Did you mean xy\?"):
        feature_entry("x", Feature("int8", ()), None, ["xy"])


def test_objects_keep_zeros_at_their_ends():
    assert as_objects([b"a\0", b""]).tolist() == [b"a\0", b""]
    assert as_objects([b"a\0"]).dtype == np.dtype(object)
