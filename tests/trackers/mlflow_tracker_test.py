"""Without its package, the tracker says how to install it. `benchmarks/trackers` runs it with the package."""

import pytest

from engine.base.errors import ConfigError
from engine.trackers.mlflow_tracker import MLflow


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed, .* pip install .*\[mlflow\]"):
        MLflow()
