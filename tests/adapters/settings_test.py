"""The settings of an adapter: the scale, and wrong values."""

import pytest

from engine.adapters import Adapter
from engine.base.errors import ConfigError


def test_scale_is_that_of_lora_or_of_rslora():
    assert Adapter("kernel", rank=16, alpha=32).scale == 2
    assert Adapter("kernel", rank=16, alpha=32, rslora=True).scale == 8


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"match": ""}, "match is empty"),
        ({"match": "("}, "no regular expression"),
        ({"rank": 0}, "rank = 0. Allowed"),
        ({"rank": 1.5}, "rank = 1.5. Allowed"),
        ({"match": 1}, "match = 1. Allowed: str"),
        ({"alpha": "1"}, "alpha = '1'. Allowed: float"),
        ({"rank": True}, "rank = True. Allowed: int"),
        ({"dora": 1}, "dora = 1. Allowed: bool"),
        ({"dropout": 1}, "dropout = 1. Allowed"),
        ({"alpha": 0}, "alpha = 0. Allowed"),
        ({"alpha": float("nan")}, "alpha = nan. Allowed"),
    ],
)
def test_wrong_values_are_config_errors(settings, text):
    with pytest.raises(ConfigError, match=text):
        Adapter(**{"match": "kernel", **settings})
