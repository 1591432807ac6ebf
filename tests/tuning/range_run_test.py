"""The config of a range test, its schedule, and the curve in the rows that a run has written."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.base import json_text
from engine.base.errors import ConfigError
from engine.training.optimizer import build_schedule
from engine.tuning.range_run import EndEarly, growth, quiet, range_config, read_curve
from tests.tuning import problems


def test_schedule_grows_exponentially_from_the_first_to_the_last_step():
    schedule = growth(5, 1e4)
    assert [float(schedule(step)) for step in (0, 1, 2, 4, 9)] == pytest.approx([1, 10, 100, 1e4, 1e4], rel=1e-4)


def test_learning_rates_of_groups_keep_their_ratio():
    groups = {
        "fast": {
            "match": "a",
            "learning_rate": 0.25,
            "learning_rate_scale": 2.0,
            "schedule": "linear",
            "warmup": "5 steps",
        },
        "slow": {"match": "b", "learning_rate_scale": 0.25, "frozen_until": "50 steps"},
        "muon": {"match": "c", "adam_learning_rate": 0.01},
    }
    config = problems.config(
        "Bowl", "targets", optimizer__groups=groups, optimizer__warmup="9 steps", optimizer__b1=0.5
    )
    found = range_config(config, 1e-4, 1.0, 100, seed=3)
    fast, slow, muon = (found.optimizer.groups[name] for name in groups)
    assert (fast.learning_rate, fast.learning_rate_scale, fast.schedule, fast.warmup) == (None, 10.0, None, None)
    assert slow.learning_rate_scale == 0.25 and str(slow.frozen_until) == "1000 steps"
    assert muon.arguments["adam_learning_rate"] == pytest.approx(1e-4 * 0.01 / 0.05)
    assert found.optimizer.warmup.value == 0 and found.optimizer.arguments == {"b1": 0.5}
    assert (found.train.seed, str(found.train.total)) == (3, "100 steps")
    schedule = build_schedule(found.optimizer, problems.size(100))
    np.testing.assert_allclose([schedule(0), schedule(99)], [1e-4, 1.0], rtol=1e-4)


def test_ratio_to_a_learning_rate_of_0_is_refused():
    groups = {"fast": {"match": "a", "learning_rate": 0.5}}
    config = problems.config("Bowl", "targets", optimizer__groups=groups, optimizer__learning_rate=0.0)
    with pytest.raises(
        ConfigError, match=r"groups\.fast\.learning_rate = 0\.5: .* optimizer.learning_rate, which is 0"
    ):
        range_config(config, 1e-4, 1.0, 100, seed=0)


def test_temporary_runs_only_train():
    evaluations = {"a": {"data": {"target": "tests.tuning.problems.targets"}}}
    config = problems.config(
        "Bowl", "targets", evaluations=evaluations, checkpoint__best="a/loss", stop={"metric": "a/loss", "target": 0.1}
    )
    found = quiet(config)
    assert (dict(found.evaluations), found.checkpoint.best, found.stop.metric) == ({}, None, None)
    assert found.optimizer == config.optimizer and found.train == config.train and found.data == config.data


def test_losses_that_are_not_finite_are_read_as_such(tmp_path):
    rates = np.geomspace(1e-3, 1, 100)
    rows = [{"step": 0, "compile_s": 1.0}]
    for step, rate in enumerate(rates, 1):
        loss = np.inf if step > 80 else 2.0 - min(step, 60) / 60
        rows.append({"step": step, "batch": step - 1, "loss": loss, "learning_rate": rate})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json_text.dumps, rows)))
    found = read_curve(tmp_path / "metrics.jsonl", 100, seed=5)
    assert found is not None and (found.seed, found.diverged) == (5, rates[80])
    assert found.learning_rates == rates[:83].tolist()  # three losses that are not finite are a divergence


def test_hook_ends_a_run_once_its_loss_has_diverged(tmp_path):
    file, hook = tmp_path / "metrics.jsonl", EndEarly(100)
    trainer: Any = SimpleNamespace(directory=SimpleNamespace(metrics=file))
    losses = [2.0 - min(step, 60) / 60 + (step > 60) * 100.0 for step in range(100)]
    rates = np.geomspace(1e-3, 1, 100)
    rows = [{"step": i + 1, "batch": i, "loss": losses[i], "learning_rate": rates[i]} for i in range(100)]
    stops = []
    for end in (1, 50, 80):
        file.write_text("\n".join(map(json_text.dumps, rows[:end])))
        stops.append(hook.run(trainer, trainer, end))
    assert stops[:2] == [None, None] and stops[2] is not None
    assert stops[2].reason == f"the loss has diverged at a learning rate of {rates[61]:.3g}"


@pytest.mark.parametrize("rows", [None, "", '{"step": 1, "batch": 0, "learning_rate": 0.1, "loss": 1.0}'])
def test_few_rows_give_no_curve(tmp_path, rows):
    if rows is not None:
        (tmp_path / "metrics.jsonl").write_text(rows)
    assert read_curve(tmp_path / "metrics.jsonl", 100) is None
