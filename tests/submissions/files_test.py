"""Wrong formats and files of `predict(format=...)`; tests/api/inference_test.py has what it writes."""

import pytest

import engine
from engine.base.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"format": "nuscene"}, r"format = 'nuscene': unknown. Formats: .*nuscenes.*Did you mean nuscenes"),
        ({"format": "format"}, r"format = 'format': unknown"),
        ({"out": "results.npz"}, r"results.npz: the format nuscenes is written to a file that ends in .json"),
        ({"out": None}, r"a format is written to a file. Set out=NAME.json"),
        ({"fields": ["y"]}, r"fields = y: only columns of .npz and .parquet"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, monkeypatch, settings, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=text):
        engine.predict("run", **{"out": "results.json", "format": "nuscenes", **settings})
