"""minADE, minFDE, miss rate and brier scores equal av2, and a loop over agents and modes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.references import forecast_metrics as av2
from benchmarks.references.exchange import largest_difference
from engine.base.errors import TaskError
from engine.metrics import BestOfModes
from tests.merging import results
from tests.properties import examples

# Written by: python -m benchmarks.references --only=forecast_metrics --golden=tests/driving/golden/references
GOLDEN = Path(__file__).parent / "golden" / "references" / "forecast_metrics.json"
BATCH, AGENTS, MODES, STEPS = 4, 3, 2, 5


def loop(predicted, future, valid, miss, best):
    errors = []
    for agent in np.ndindex(future.shape[:-2]):
        steps = np.flatnonzero(valid[agent])
        if not len(steps):
            continue
        paths = [[np.linalg.norm(mode[t] - future[agent][t]) for t in steps] for mode in predicted[agent]]
        ades, fdes = [np.mean(path) for path in paths], [path[-1] for path in paths]
        ade = min(ades) if best == "each" else ades[int(np.argmin(fdes))]
        errors.append((ade, min(fdes), min(fdes) > miss))
    return dict(zip(("m/min_ade", "m/min_fde", "m/miss_rate"), np.mean(errors, axis=0), strict=True))


@pytest.mark.slow
@examples(20)
@given(st.integers(0, 10**6), st.sampled_from(["each", "endpoint"]), st.booleans())
def test_errors_equal_a_loop(seed, best, with_agents):
    rng = np.random.default_rng(seed)
    agents = (AGENTS,) if with_agents else ()
    predicted = rng.normal(size=(BATCH, *agents, MODES, STEPS, 2)).astype(np.float32)
    future = rng.normal(size=(BATCH, *agents, STEPS, 2)).astype(np.float32)
    valid = rng.random((BATCH, *agents, STEPS)) < 0.5
    valid[0, ..., 0] = True
    future[~valid] = np.nan
    found = results(BestOfModes.of(predicted, future, valid, miss=1.5, best=best), 3)
    assert found == pytest.approx(loop(predicted, future, valid, 1.5, best), rel=1e-5)


def test_mask_of_agents_leaves_whole_agents_out():
    predicted, future = np.zeros((2, 2, 1, 3, 2)), np.zeros((2, 2, 3, 2))
    future[:, 1] = 10
    found = results(BestOfModes.of(predicted, future, np.array([[1, 0], [1, 0]])))
    assert found == {"m/min_ade": 0, "m/min_fde": 0, "m/miss_rate": 0}


def test_a_forecast_of_nan_is_a_miss():
    found = results(BestOfModes.of(np.full((2, 1, 3, 2), np.nan), np.zeros((2, 3, 2))))
    assert np.isnan(found["m/min_ade"])
    assert found["m/miss_rate"] == 1


def test_wrong_shapes_and_settings_are_errors():
    with pytest.raises(TaskError, match=r"predicted has shape \[2, 3, 4, 2\] and future \[2, 4, 3\]"):
        BestOfModes.of(np.zeros((2, 3, 4, 2)), np.zeros((2, 4, 3)))
    with pytest.raises(TaskError, match=r"best = 'all' is unknown"):
        BestOfModes.of(np.zeros((2, 3, 4, 2)), np.zeros((2, 4, 2)), best="all")
    with pytest.raises(TaskError, match=r"probabilities has shape \[2, 4\]. Allowed is that of the modes, \[2, 3\]"):
        BestOfModes.of(np.zeros((2, 3, 4, 2)), np.zeros((2, 4, 2)), probabilities=np.zeros((2, 4)))


def test_numbers_equal_av2():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden["sets"]) == 12
    for one, result in zip(golden["sets"], golden["results"], strict=True):
        for name, pairs in av2.compared(one, result).items():
            assert largest_difference(pairs) <= av2.TOLERANCE, name


def test_of_equal_errors_the_first_mode_has_the_brier_score():
    predicted, probabilities = np.zeros((1, 3, 2, 2)), np.array([[0.5, 1.0, 0.0]])
    predicted[:, 0, 1], predicted[:, 1, 1], predicted[:, 2, 1] = [3, 4], [-5, 0], [0, 9]
    found = results(BestOfModes.of(predicted, np.zeros((1, 2, 2)), probabilities=probabilities))
    assert found["m/brier_min_fde"] == 5.25 and found["m/brier_min_ade"] == 2.75
    assert "m/brier_min_fde" not in results(BestOfModes.of(predicted, np.zeros((1, 2, 2))))


def test_resamples_have_brier_scores():
    rng = np.random.default_rng(0)
    predicted, probabilities = rng.normal(size=(4, 3, 2, 2)), rng.dirichlet(np.ones(3), 4)
    metric = BestOfModes.of(predicted, np.zeros((4, 2, 2)), probabilities=probabilities)
    counts = np.array([[1, 1, 1, 1], [0, 3, 0, 1]])
    numbers = metric.resampler().numbers(counts)
    each = np.array([one["brier_min_fde"] for one in metric.compute_each("brier_min_fde")])
    np.testing.assert_allclose(numbers["brier_min_fde"], counts @ each / 4, rtol=1e-6)
