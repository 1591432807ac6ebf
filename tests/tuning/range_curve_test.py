"""The curve of a range test: its minimum, its divergence, and which end of the range to extend."""

import numpy as np
import pytest

from engine.tuning import range_curve

STEPS = 100
RATES = np.geomspace(1e-6, 1, STEPS)


def analyse(losses):
    return range_curve.analyse(RATES.tolist(), losses.tolist(), STEPS)


def curve(falls=60, rises=80, noise=0.0, seed=0):
    """Returns losses that begin to fall at 40, are lowest at `falls` and rise from `rises` on."""
    at = np.arange(STEPS)
    losses = 2 - 1.5 * np.clip((at - 40) / (falls - 40), 0, 1) + 0.3 * np.clip(at - rises, 0, None)
    losses -= 0.01 * (falls < at) * (at <= (falls + rises) // 2)
    return losses + np.random.default_rng(seed).normal(0, noise, STEPS)


def test_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss():
    found = analyse(curve(noise=0.02))
    assert not found.problem and found.suggestion is not None and found.minimum is not None
    assert found.suggestion == pytest.approx(found.minimum / 10)
    assert RATES[58] <= found.minimum <= RATES[82]
    assert found.steepest is not None and RATES[40] <= found.steepest <= RATES[60]
    assert found.diverged is not None and RATES[80] < found.diverged <= RATES[88]


def test_edge_of_a_divergence_is_not_blurred():
    losses = np.where(np.arange(STEPS) < 70, 1.0, 1e9)
    losses[:40] = 2.0
    found = analyse(losses)
    assert found.diverged == pytest.approx(RATES[70])


def test_losses_that_are_not_finite_end_the_curve_and_a_single_one_does_not():
    losses = curve(rises=200)
    losses[20] = np.nan
    assert analyse(losses).diverged is None
    losses[75:] = np.inf
    found = analyse(losses)
    assert found.diverged == pytest.approx(RATES[75]) and found.suggestion is not None
    assert len(found.smoothed) == 75


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        (curve(rises=200)[:STEPS], "the loss has not risen again up to 1. Extend the range upwards: --to=100"),
        (np.linspace(2, 5, STEPS), "never fallen from 1e-06 on, only risen. Extend it downwards: --from=1e-08"),
        (np.full(STEPS, 2.0), "neither fallen nor risen between 1e-06 and 1. Extend the range upwards: --to=100"),
        (np.r_[np.ones(3), np.full(STEPS - 3, np.nan)], "only 3 losses are finite. Start lower"),
    ],
)
def test_curve_without_a_suggestion_says_which_end_to_extend(losses, problem):
    found = analyse(losses)
    assert problem in found.problem and found.suggestion is None


def test_noise_is_not_taken_for_a_fall():
    flat = [analyse(np.random.default_rng(seed).normal(2, 0.3, STEPS)) for seed in range(100)]
    assert [found.suggestion for found in flat if found.suggestion is not None] == []


def test_steps_after_a_divergence_change_nothing():
    """A run ends early at a step that depends on its speed."""
    losses = curve(rises=70, noise=0.02)
    whole = analyse(losses)
    assert whole.diverged is not None
    for end in range(len(whole.losses), STEPS):
        assert range_curve.analyse(RATES[:end].tolist(), losses[:end].tolist(), STEPS) == whole
    before = range_curve.analyse(
        RATES[: len(whole.losses) - 1].tolist(), losses[: len(whole.losses) - 1].tolist(), STEPS
    )
    assert before.diverged is None
