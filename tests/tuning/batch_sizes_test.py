"""The suggested batch size: of a temporary run, and of the checkpoints of a run."""

import math

import pytest

import engine
from engine.base.errors import ConfigError
from engine.tuning import NoiseScale, batch_size, batch_size_of_run
from engine.tuning.batch_sizes import suggest
from tests import zoo
from tests.tuning import problems

CONFIG = problems.config("Regression", "observations", train__global_batch_size=16)


@pytest.fixture(scope="module")
def measured():
    return batch_size(CONFIG, steps=20, points=2, batches=16)


def test_noise_grows_while_the_temporary_run_trains(measured):
    found = measured
    assert [point.step for point in found.curve] == [10, 20]
    first, last = (point.noise_scale or math.inf for point in found.curve)
    assert first < last and found.curve[0].squared_gradient > found.curve[1].squared_gradient


def test_suggestion_has_an_interval_and_what_other_sizes_cost(measured):
    found = measured
    assert found.suggestion == pytest.approx(found.curve[-1].noise_scale)
    assert found.interval == found.curve[-1].interval
    assert {size: steps for size, steps, _ in found.trade_offs}[16] == pytest.approx(1 + found.suggestion / 16)


def test_checkpoints_of_a_run_give_the_same_as_a_temporary_run(measured, tmp_path):
    config = problems.config(
        "Regression", "observations", train__global_batch_size=16, checkpoint__every="10 steps", train__total="20 steps"
    )
    engine.train(config, workdir=tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    found = batch_size_of_run(tmp_path / "run", batches=16, at=[10])
    assert found.curve[0] == measured.curve[0]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"no checkpoint of step 11\. Found: 10, 20\."):
        batch_size_of_run(tmp_path / "run", at=[11])


def point(step, scale, low, high):
    known = math.isfinite(high)
    return NoiseScale(step, 32, 16, 1.0, 2.0, (1.0 if known else -1.0, 3.0), 4.0, scale if known else None, (low, high))


def test_suggestion_is_that_of_the_second_half_of_the_curve():
    found = suggest([point(1, 1, 1, 1), point(2, 1, 1, 2), point(3, 50, 40, 60), point(4, 200, 150, 300)], 16, [])
    assert (found.suggestion, found.interval) == (pytest.approx(100), (40, 300))
    assert "last 2 points reach from 40 to 300 examples" in found.certainty and "a rough hint" in found.certainty


def test_noise_that_is_too_large_gives_the_lower_end_and_a_sentence():
    found = suggest([point(8, None, 30, math.inf)], 16, [])
    assert found.suggestion is None and found.trade_offs == [] and found.certainty == ""
    assert "interval -1 to 3, which includes 0. It is at least 30 examples. Measure more batches: --batches=128" in (
        found.problem
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 3}, "--batches = 3: allowed are 4 to 10,000"),
        ({"steps": 3}, "--points = 4, --steps = 3: allowed are 1 point"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        batch_size(CONFIG, **arguments)


def test_config_that_ends_before_the_steps_says_how_many_it_has():
    config = problems.config("Regression", "observations", train__global_batch_size=16, train__total="6 steps")
    with pytest.raises(ConfigError, match=r"--steps = 20: the run of this config has only 6 steps\. Set --steps=6\."):
        batch_size(config, steps=20)


def test_run_without_a_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(engine.ConvoyError, match="is not a run"):
        batch_size_of_run(tmp_path)


def test_group_that_is_unfrozen_between_two_points_is_measured_from_then_on():
    """Its checkpoint has another state than the one before, and the run saves one more."""
    kernel = {"match": "head/kernel", "frozen_until": "3 steps"}
    config = problems.config(
        "Regression", "observations", optimizer__groups={"kernel": kernel}, train__global_batch_size=16
    )
    task = zoo.Classify("linear", width=1)
    found = batch_size(config, steps=4, points=2, batches=8, task=task, data=zoo.source(256))
    assert [point.step for point in found.curve] == [2, 4]
    assert found.curve[1].trace > 1.5 * found.curve[0].trace
