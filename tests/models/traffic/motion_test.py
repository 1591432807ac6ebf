"""Motion forecasting: padding, frames, the loss and metrics of both benchmarks, and figures."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.traffic.motion import MotionForecast, to_origin
from engine import TaskError
from tests.merging import results
from tests.models.traffic.motion_files import batch, sources

SMALL: dict[str, Any] = {"modes": 3, "width": 16, "heads": 2, "latents": 4, "encoder": 0, "decoder": 1}
TASKS = {
    "argoverse2": MotionForecast("argoverse2", 60, **SMALL),
    "waymo": MotionForecast("waymo", 80, **SMALL),
}
GRAPH, PARAMS = nnx.split(TASKS["waymo"].build(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> dict[str, Any]:
    return {name: batch(source) for name, source in sources(tmp_path_factory.mktemp("motion")).items()}


@pytest.fixture(scope="module")
def waymo(batches) -> dict[str, Any]:
    return batches["waymo"]


@jax.jit
def forecast(batch) -> Any:
    return nnx.merge(GRAPH, PARAMS)(batch)


@jax.jit
def loss(outputs, batch) -> Any:
    return TASKS["waymo"].loss(lambda _: outputs, batch, None)


@functools.partial(jax.jit, static_argnums=0)
def evaluated(name, modes, logits, batch) -> Any:
    return TASKS[name].evaluate(lambda _: (modes, None, logits), batch)


def test_padding_does_not_change_forecasts(waymo):
    found = forecast(waymo)
    noise = dict(waymo)
    for name in ("agents", "lines"):
        valid = waymo[f"{name}_valid"]
        assert not valid.all()
        noise[name] = np.where(valid[..., None], waymo[name], 1e3).astype(np.float32)
    for one, two in zip(found, forecast(noise), strict=True):
        np.testing.assert_allclose(np.asarray(two)[waymo["target"]], np.asarray(one)[waymo["target"]], atol=1e-5)


def test_forecasts_depend_on_agents_and_lines(waymo):
    found = np.asarray(forecast(waymo)[0])
    for name in ("agents", "lines"):
        other = forecast({**waymo, name: waymo[name] + waymo[f"{name}_valid"][..., None]})[0]
        assert np.abs(np.asarray(other) - found)[waymo["target"]].max() > 1e-3, name


def test_loss_equals_plain_numpy(waymo):
    outputs = forecast(waymo)
    valid = waymo["future_valid"] & (np.arange(80) % 7 > 0)  # also at the end
    seen = {**waymo, "future_valid": valid}
    terms = loss(outputs, seen).terms
    predicted, log_scale, logits = (np.asarray(x, np.float64) for x in outputs)
    best, score = [], []
    for row, target in zip(*np.nonzero(waymo["target"]), strict=True):
        known = valid[row, target]
        error = np.sqrt(((predicted[row, target] - waymo["future"][row, target]) ** 2).sum(-1) + 1e-6)[:, known]
        mode = error.mean(-1).argmin()
        scale = log_scale[row, target, mode, known].clip(-1, 4)
        best.append((error[mode] / np.exp(scale) + 2 * scale).mean())
        score.append(np.log(np.exp(logits[row, target]).sum()) - logits[row, target, mode])
    found = {name: float(term.total.sum() / term.weight.sum()) for name, term in terms.items()}
    assert found == pytest.approx({"best": np.mean(best), "score": 0.5 * np.mean(score)}, rel=1e-4)


def test_what_is_not_valid_does_not_change_the_loss(waymo):
    outputs = forecast(waymo)
    valid = waymo["future_valid"] & (np.arange(80) < 40)
    future = np.where(valid[..., None], waymo["future"], np.float32(1e3))
    one, other = (loss(outputs, {**waymo, "future_valid": valid, "future": x}) for x in (waymo["future"], future))
    for name in ("best", "score"):
        np.testing.assert_array_equal(one.terms[name].total, other.terms[name].total)
    none = loss(outputs, {**waymo, "future_valid": np.zeros_like(valid)})
    assert not any(np.asarray(term.weight).any() for term in none.terms.values())


def test_true_forecasts_have_no_error(batches):
    for name, one in batches.items():
        modes = np.repeat(one["future"][:, :, None], 3, 2) + np.array([0, 5, -5], np.float32)[:, None, None]
        logits = np.broadcast_to(np.array([9, 0, 0], np.float32), modes.shape[:3])
        found: Any = {key: results(metric) for key, metric in evaluated(name, modes, logits, one).items()}
        if name == "waymo":
            assert found["waymo"]["m/min_ade"] == pytest.approx(0, abs=1e-4)
            assert found["waymo"]["m/mean_ap"] == found["waymo"]["m/soft_mean_ap"] == 1
            assert found["waymo"]["m/miss_rate"] == 0
        else:
            assert found["focal"]["m/min_fde"] == found["scored"]["m/miss_rate"] == 0
            assert found["focal"]["m/brier_min_fde"] == pytest.approx(0, abs=1e-6)
            assert found["constant_velocity"]["m/min_fde"] > 0.1


def test_predictions_are_relative_to_the_origin(waymo):
    points = waymo["future"][:, :, None]
    placed = np.asarray(to_origin(jnp.asarray(points), waymo["frame"]))[:, :, 0]
    np.testing.assert_allclose(placed[waymo["target"]], waymo["states"][waymo["target"]][:, 1:, :2], atol=2e-3)
    found = TASKS["waymo"].predict(lambda _: (points, None, np.zeros(points.shape[:3], np.float32)), waymo)
    np.testing.assert_array_equal(found["trajectories"][:, :, 0], placed)
    np.testing.assert_array_equal(found["probability"], 1)


def test_an_unknown_benchmark_is_an_error():
    with pytest.raises(TaskError, match="benchmark = 'nuscenes': allowed are argoverse2, waymo"):
        MotionForecast("nuscenes")


def test_figure_shows_the_scenario(waymo):
    pytest.importorskip("matplotlib")
    row = {**jax.tree.map(lambda x: x[0], waymo), "scenario_id": "1b"}
    prediction = {"trajectories": row["states"][:, None, 1:, :2], "probability": np.ones((3, 1))}
    (axes,) = TASKS["waymo"].figure(row, prediction).axes
    assert axes.get_title() == "Scenario 1b"
    shown = np.concatenate([line.get_xydata() for line in axes.lines])
    assert np.hypot(*(shown - row["future"][0, -1]).T).min() < 0.01
