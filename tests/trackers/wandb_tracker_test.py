"""Without its package, the tracker says how to install it. `benchmarks/trackers` runs it with the package."""

import pytest

from engine.base.errors import ConfigError
from engine.trackers.wandb_tracker import Wandb


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed, .* pip install .*\[wandb\]"):
        Wandb()
