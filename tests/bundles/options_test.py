"""Options of bundles."""

import pytest

from engine.base.errors import ConfigError
from engine.bundles.options import Options


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"formats": ("tflite",)}, "--format: found 'tflite'. Allowed are one or more of stablehlo,onnx"),
        ({"formats": ()}, "--format: found ''"),
        ({"platforms": ("cpu", "gpu")}, "--platforms: found 'gpu'. Allowed are one or more of cpu,cuda,tpu,rocm"),
        ({"rows": 0}, "--batch=0: allowed is a number from 1, or any"),
    ],
)
def test_wrong_options_are_named(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        Options(**settings)
