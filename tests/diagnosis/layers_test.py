"""`log.layers`: a run with it is bitwise the run without it; its rows; the estimate of the noise of the gradient."""

import json

import numpy as np
import pytest

import engine
from engine.base.errors import FieldError
from engine.config import defaults
from engine.config.validation import validate
from engine.diagnosis.layers import _noise
from tests import runs, zoo
from tests.diagnosis import stacked

MESH = dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__accumulate=2, train__total="5 steps")
MEASURES = {
    "param_norm": {"", "/embed", "/head", "/decoder/0", "/decoder/3"},
    "grad_norm": {"", "/embed", "/head", "/decoder/0", "/decoder/3"},
    "update_norm": {"", "/embed", "/head", "/decoder/0", "/decoder/3"},
    "update_ratio": {"", "/embed", "/head", "/decoder/0", "/decoder/3"},
    "noise_trace": {""},
    "noise_squared_gradient": {""},
    "activation_max": {"/embed", "/head", "/decoder/0", "/decoder/3"},
    "activation_rms": {"/embed", "/head", "/decoder/0", "/decoder/3"},
    "attention_entropy": {"/decoder/0", "/decoder/3"},
    "dead_units": {"/decoder/0", "/decoder/3"},
}


def trained(folder, **settings):
    """Returns the hashes of the arrays of the last checkpoint, and the rows of a run."""
    config = runs.config(evaluations={}, **MESH, **settings)
    engine.train(config, task=stacked.Classify(), data=zoo.source(), workdir=folder)
    arrays = json.loads((folder / "checkpoints/5/manifest.json").read_text())["arrays"]
    return arrays, runs.complete_lines(folder / "metrics.jsonl")


@pytest.mark.slow
def test_run_with_a_diagnosis_is_bitwise_the_run_without_it(tmp_path):
    arrays, rows = trained(tmp_path / "on", log__layers="2 steps")
    assert trained(tmp_path / "off")[0] == arrays
    found = {row["step"]: row for row in rows if "layers/grad_norm" in row}
    assert list(found) == [2, 4, 5]
    assert {f"layers/{name}{layer}" for name, layers in MEASURES.items() for layer in layers} <= found[4].keys()
    assert not {name for name in found[5] if "update" in name}, "no step follows the last one"
    # The gradient is that of the step that follows.
    norms = runs.rows(tmp_path / "on", "grad_norm")
    for step in (2, 4):
        assert found[step]["layers/grad_norm"] == pytest.approx(norms[step + 1], rel=1e-5)


def test_noise_scale_is_unbiased_in_its_two_terms():
    """The loss |w - x|² / 2 has the gradient w - x: the variance of x is that of the gradient."""
    rng = np.random.default_rng(0)
    rows, parts, size, away, deviation = 32, 8, 20, 0.3, 2.0
    found = []
    for _ in range(2000):
        each = away - deviation * rng.normal(size=(parts, rows // parts, size))
        large, small = np.square(each.mean((0, 1))).sum(), np.square(each.mean(1)).sum(1).mean()
        noise = _noise({"grad": {"a": large}, "part": {"a": small}}, rows, parts)
        found.append([noise["noise_trace"][""], noise["noise_squared_gradient"][""]])
    trace, squared = np.mean(found, 0)
    assert trace == pytest.approx(size * deviation**2, rel=0.02)
    assert squared == pytest.approx(size * away**2, rel=0.1)


def test_layer_without_an_estimated_gradient_has_no_noise_scale():
    noise = _noise({"grad": {"a": 1.0, "b": 4.0}, "part": {"a": 9.0, "b": 5.0}}, 32, 8)
    assert noise["noise_scale"].keys() == {"", "b"}


@pytest.mark.parametrize("section", ["hooks", "evaluations"])
def test_name_of_the_diagnosis_is_taken(section):
    c = defaults()
    c.task, c.data = dict(target="tests.zoo.Classify"), dict(target="tests.zoo.source")
    getattr(c, section)["layers"] = (
        dict(target="x.Y") if section == "hooks" else dict(data=dict(target="tests.zoo.source"))
    )
    validate(c)
    c.log.layers = "10 steps"
    with pytest.raises(FieldError, match=rf"log.layers: its results are called 'layers', as those of {section}.layers"):
        validate(c)
