"""Which layers cost the most, and the choice of layers that keeps a limit, for a function with one bad layer."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.quantization import quantize
from engine.quantization.plan import Plan
from engine.quantization.sensitivity import Limit, Search
from tests.quantization import functions

BATCHES = functions.batches(2, rows=64)
NAMES = ("a", "bad", "b", "c")


def weights() -> dict[str, np.ndarray]:
    """Four layers, of which one has a large entry in each channel, so that its other entries are rounded to 0."""
    found = {name: np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32) for i, name in enumerate(NAMES)}
    found["bad"][0] = 400.0
    return found


def chain(w, inputs):
    x = inputs["x"]
    for name in NAMES:
        x = jnp.tanh(jnp.asarray(x).at[:, 0].set(0) @ w[name])
    return {"y": x}


@functools.cache
def search(**changes) -> Search:
    quantized = quantize(chain, weights(), BATCHES, "int8-weights")
    exact = chain(weights(), BATCHES[0])["y"]

    def measure(plan: Plan | None, arrays):
        y = exact
        if plan is not None:
            held = {**arrays, **{name: weights()[name] for name in plan.kept}}
            y = jax.jit(plan.function(chain, weights()))(held, BATCHES[0])["y"]
        measured.append(plan)
        return {"test/error": float(jnp.abs(y - exact).mean()), "test/number": 1.0, "test/nan": math.nan}

    measured: list[Plan | None] = []
    found = Search(quantized, measure, "test/error", **changes)
    vars(found)["measured"] = measured
    return found


def test_planted_layer_costs_the_most():
    found = search().sensitivity()
    assert found.costs[0].layer.name == "bad" and found.before == 0
    assert found.costs[0].drop > 10 * found.costs[1].drop > 0
    assert sorted(cost.layer.name for cost in found.costs) == sorted(NAMES)
    lines = found.text().splitlines()
    assert lines[0].split() == ["layer", "shape", "numbers", "test/error", "with", "it", "alone", "drop"]
    assert lines[1].startswith("bad    8x8    64") and lines[-1].startswith("most costly: bad (+")
    assert found.to_json()["layers"][0]["weight"] == "bad"


def test_limit_keeps_the_costly_layer_in_floats_alone():
    plan, costs = search().within(Limit("test/error", 0.05))
    assert plan.kept == ("bad",) and [layer.name for layer in plan.layers] == ["a", "b", "c"] and costs is not None


def test_limit_that_all_layers_keep_needs_no_search():
    plan, costs = search().within(Limit("test/error", 10))
    assert plan.kept == () and costs is None


def test_limit_that_no_choice_keeps_is_refused():
    with pytest.raises(
        ConfigError, match=r"max-drop = test/error:1e-12: no choice of layers reaches it. test/error dr"
    ):
        search().within(Limit("test/error", 1e-12))


def test_a_plan_is_measured_once():
    found = search()
    found.sensitivity()
    count = len(vars(found)["measured"])
    found.after(found.plan.only("bad"))
    assert len(vars(found)["measured"]) == count


def test_direction_turns_the_drop():
    up, down = search(better=True), search()
    plan = up.plan
    assert up.drop(plan) == -down.drop(plan) < 0


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("heldout/accuracy:0.2", Limit("heldout/accuracy", 0.2)),
        ("a/ap/car:1:2%", Limit("a/ap/car:1", 2, percent=True)),
    ],
)
def test_limit_is_parsed(text, limit):
    assert Limit.parse(text) == limit


def test_limit_in_percent_is_of_the_value_in_floats():
    limit = Limit("x", 2, percent=True)
    assert limit.allows(0.01, 0.5) and not limit.allows(0.011, 0.5) and str(limit) == "x:2%"


@pytest.mark.parametrize("text", ["accuracy", ":0.2", "a:b", "a:-1", "a:nan", "a:inf"])
def test_limit_that_is_not_understood_is_refused(text):
    with pytest.raises(ConfigError, match=r"max-drop = '.*': not understood. Write METRIC:NUMBER"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("test/eror", "metric = 'test/eror': not measured. Did you mean test/error"),
        ("test/number", "its name does not say whether a larger value is better"),
    ],
)
def test_metric_that_cannot_be_judged_is_refused(metric, text):
    found = search()
    with pytest.raises(ConfigError, match=text):
        Search(found.quantized, lambda plan, arrays: found.before, metric)


def test_metric_without_a_value_is_an_infinite_drop():
    found = search()
    judged = Search(found.quantized, lambda plan, arrays: found.before, "test/nan", better=True)
    assert judged.drop(judged.plan) == math.inf
