"""Without its package, the tracker says how to install it. `benchmarks/trackers` runs it with the package."""

import pytest

from engine.base.errors import ConfigError
from engine.trackers.trackio_tracker import Trackio


def test_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trackio is not installed, .* pip install .trackio>=0.43"):
        Trackio()
