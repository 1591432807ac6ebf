"""The text, the JSON and the files of the results of tuning."""

import csv
import json
import math

import numpy as np
import pytest

from engine.base import json_text
from engine.tuning import show
from engine.tuning.batch_sizes import suggest
from engine.tuning.learning_rates import combine
from engine.tuning.noise import NoiseScale
from engine.tuning.range_curve import analyse

RATES = np.geomspace(1e-6, 1, 100)
LOSSES = 1 + np.clip(np.log10(RATES / 3e-2), -2, 2) ** 2
LOSSES[-1] = np.nan
FOUND = combine([analyse(RATES.tolist(), LOSSES.tolist(), 100, seed) for seed in (4, 5)], 0.5)
SIZES = suggest(
    [
        NoiseScale(10, 32, 16, 2.0, 3.0, (2.0, 4.0), 300.0, 100.0, (80.0, 130.0)),
        NoiseScale(20, 32, 16, 1.0, 0.1, (-1.0, 1.0), 300.0, None, (50.0, math.inf)),
    ][::-1],
    64,
    [],
)


def test_text_of_learning_rates_has_the_chart_the_table_and_the_flag():
    text = show.learning_rates_text(FOUND, 60, color=False, ascii_only=True)
    assert text.startswith("loss, running median\n") and "| learning rate 1e-06" in text and "seed 4" in text
    assert text.isascii() and max(map(len, text.split("suggestion:")[0].splitlines())) <= 62
    assert text.splitlines()[-1] == FOUND.flag == "--config.optimizer.learning_rate=0.0023"
    assert "The config has 0.5, which is 2.2e+02 times larger." in text


def test_text_without_a_suggestion_has_no_flag():
    flat = combine([analyse(RATES.tolist(), [2.0] * 100, 100)], 0.5)
    text = show.learning_rates_text(flat, 60, color=False, ascii_only=True)
    assert "--config" not in text and text.splitlines()[-1].split() == ["0", "-", "-", "-", "-"]


def test_text_of_batch_sizes_marks_the_configured_one():
    lines = show.batch_sizes_text(SIZES).splitlines()
    assert "cannot tell  50 to unknown" in lines[1]
    [configured] = [line for line in lines if line.endswith("config")]
    assert configured.split() == ["64", "2.56", "x", "1.64", "x", "config"]
    assert any(line.startswith("suggestion: about 100 examples") for line in lines)
    assert "Up to 25 examples, a larger batch costs at most 25 % more examples than the fewest." in lines
    assert "Above 400, it saves at most 20 % of the steps." in lines


def test_json_has_null_for_what_is_not_finite():
    found = json.loads(json_text.dumps(show.to_json(FOUND)))
    assert found["flag"] == FOUND.flag and found["curves"][0]["losses"][-1] is None
    sizes = json.loads(json_text.dumps(show.to_json(SIZES)))
    assert sizes["curve"][0]["interval"] == [50.0, None] and sizes["suggestion"] == pytest.approx(100)


def test_files_have_every_point(tmp_path):
    assert show.write_files(FOUND, tmp_path / "lr") == ["curve.csv", "curve.png"]
    assert show.write_files(SIZES, tmp_path / "batch") == ["curve.csv", "curve.png"]
    rows = list(csv.DictReader((tmp_path / "lr" / "curve.csv").read_text().splitlines()))
    assert len(rows) == 200 and rows[0] == {
        "seed": "4", "step": "1", "learning_rate": "1e-06", "loss": "5.0", "smoothed": "5.0"
    }  # fmt: skip
    [first, _] = csv.DictReader((tmp_path / "batch" / "curve.csv").read_text().splitlines())
    assert (first["step"], first["noise_scale"], first["high"]) == ("20", "", "inf")
    assert all((tmp_path / name / "curve.png").read_bytes().startswith(b"\x89PNG") for name in ("lr", "batch"))
