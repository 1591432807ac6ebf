import random

from engine.sweeps.importance import importance_of
from tests.sweeps.made import complete, make_sweep


def test_setting_that_decides_is_the_most_important(tmp_path):
    draw = random.Random(0)
    trials = []
    for _ in range(24):
        rate, width = 10 ** draw.uniform(-4, -2), draw.choice([16, 64])
        trials.append(complete(rate, width, rate * 50))
    found = importance_of(make_sweep(tmp_path / "sweep", trials))
    assert next(iter(found.shares)) == "optimizer.learning_rate" and found.shares["optimizer.learning_rate"] > 0.5
    assert abs(sum(found.shares.values()) - 1) < 1e-9
    assert found.note == "PED-ANOVA of 24 completed trials"


def test_few_trials_are_not_enough(tmp_path):
    found = importance_of(make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5)] * 5))
    assert (found.shares, found.note) == ({}, "needs 6 completed trials, found 5")


def test_estimate_of_few_trials_is_called_rough(tmp_path):
    trials = [complete(1e-3 * (1 + number), 16, number / 10) for number in range(8)]
    assert "rough" in importance_of(make_sweep(tmp_path / "sweep", trials)).note
