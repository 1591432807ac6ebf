"""Rates of the parts of a small model: each has its name, and the run that measures the loop leaves nothing."""

import tempfile

import jax
import pytest

from engine.planning import small_work
from engine.planning.machine import CONVOLUTION


@pytest.fixture(scope="module")
def rates():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"REPEATS": 1, "STEPS": 20, "ROWS": 64, "IMAGES": (1, 8, 8, 1)}.items():
            patch.setattr(small_work, name, value)
        yield small_work.rates(jax.devices()[:1], 1e11, print)


def test_shares_are_those_of_narrow_products_and_of_convolutions(rates):
    shares = {name: rate for name, rate in rates.items() if name.startswith("share_")}
    assert shares.keys() == {f"share_{size}" for size in (16, 32, 64, 128, CONVOLUTION)}
    assert min(shares.values()) > 0


def test_dispatch_is_a_step_of_a_run_that_leaves_nothing(rates, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(small_work, "STEPS", 20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seconds = small_work.loop_seconds(len(jax.devices()))
    assert 0 < seconds < 1 and not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
    assert 0 < rates["array"] < seconds and rates["update"] > 0
