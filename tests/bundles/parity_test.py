"""Comparisons of programs with the engine."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import export

from engine.bundles import parity
from engine.bundles.manifest import BundleError


def test_differences_are_relative_to_the_largest_value_from_one():
    want = {"small": np.array([0.1, 0.2]), "large": np.array([100.0, -200.0]), "class": np.array([1, 2])}
    have = {"small": np.array([0.1, 0.3]), "large": np.array([101.0, -200.0]), "class": np.array([1, 3])}
    assert parity.differences(have, want) == pytest.approx({"small": 0.1, "large": 0.005, "class": 1.0})
    assert parity.differences(want, want) == {"small": 0.0, "large": 0.0, "class": 0.0}


def test_floats_of_each_precision_have_a_difference_and_others_are_equal_or_not():
    for dtype, difference in ((ml_dtypes.bfloat16, 0.0078125), (np.float16, 0.0078125), (np.uint8, 0.0), (bool, 0.0)):
        found = parity.differences({"x": np.array([0, 1.0078125]).astype(dtype)}, {"x": np.array([0, 1]).astype(dtype)})
        assert found == {"x": difference}, dtype
    assert parity.differences({"x": np.array([True])}, {"x": np.array([False])}) == {"x": 1.0}


@pytest.mark.parametrize(
    "have",
    [
        {},
        {"x": np.zeros(3)},
        {"x": np.zeros(2, np.int32)},
        {"x": np.array([0.0, np.nan])},
        {"x": np.array([np.inf, 1.0])},
    ],
)
def test_missing_other_and_infinite_outputs_differ_infinitely(have):
    assert parity.differences(have, {"x": np.array([np.inf, 0.0])})["x"] in (float("inf"), 1.0)
    assert parity.differences(have, {"x": np.array([np.nan, 0.0])})["x"] == float("inf")


def test_same_infinities_are_equal():
    x = {"x": np.array([np.inf, np.nan, 1.0])}
    assert parity.differences(x, x) == {"x": 0.0}
    assert parity.differences({"x": np.full(2, -np.inf)}, {"x": np.full(2, -np.inf)}) == {"x": 0.0}


def test_state_passes_from_frame_to_frame():
    def call(inputs):
        return {"state/sum": inputs["state/sum"] + inputs["x"], "twice": 2 * inputs["x"]}

    frames = [{"x": np.array([float(i)])} for i in range(4)]
    found = parity.run_frames(call, frames, {"state/sum": np.array([10.0])})
    np.testing.assert_array_equal(found["state/sum"], [[10], [11], [13], [16]])
    assert found["twice"].shape == (4, 1)


def test_variants_halve_each_dimension_of_any_size():
    b, t = export.symbolic_shape("b, t")
    specs = {"x": jax.ShapeDtypeStruct((b, t, 3), np.float32), "y": jax.ShapeDtypeStruct((b,), np.float32)}
    frames = [{"x": np.zeros((4, 6, 3)), "y": np.zeros(4)}]
    shapes = [{name: x.shape for name, x in found[0].items()} for found, _ in parity.variants(specs, frames, {})]
    assert shapes == [{"x": (4, 6, 3), "y": (4,)}, {"x": (2, 6, 3), "y": (2,)}, {"x": (4, 3, 3), "y": (4,)}]


def test_difference_above_the_tolerance_is_an_error():
    assert parity.checked("T.predict", "ONNX", {"a": 1e-7, "b": 0.0}, 1e-5) == (
        "T.predict: ONNX agrees with the engine within 1.0e-07 (a)"
    )
    for value in (1e-3, float("inf"), float("nan")):
        with pytest.raises(BundleError, match=r"T.predict: output b of the ONNX program differs from the engine by"):
            parity.checked("T.predict", "ONNX", {"a": 0.0, "b": value}, 1e-5)
