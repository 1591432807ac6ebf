import json
import math
import random

import pytest

from engine.checkpoint.retention import RESULTS, Retention, ranking, read_results, to_delete
from engine.config.errors import CheckpointError, RunError

ACCURACY = "heldout/accuracy"


def choose(steps, values=None, *, keep_latest=1, best: str | None = ACCURACY, best_mode="max", keep_best=1):
    results = {step: {ACCURACY: value} for step, value in (values or {}).items()}
    return to_delete(steps, results, keep_latest=keep_latest, best=best, best_mode=best_mode, keep_best=keep_best)


def test_keeps_the_newest():
    assert choose([10, 20, 30, 40], keep_latest=2, best=None) == [10, 20]


def test_keeps_the_best_besides_the_newest():
    values = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.6}
    assert choose([10, 20, 30, 40], values) == [10, 30]
    assert choose([10, 20, 30, 40], values, best_mode="min") == [20, 30]
    assert choose([10, 20, 30, 40], values, keep_best=2) == [10]


def test_of_equal_results_the_earlier_step_stays():
    assert choose([10, 20, 30], {10: 0.9, 20: 0.9}) == [20]
    assert choose([10, 20, 30], {10: 0.9, 20: 0.9}, best_mode="min") == [20]


def test_the_newest_stays_whatever_is_asked():
    assert choose([10, 20], {10: 0.9}, keep_latest=0, keep_best=0) == [10]


def test_a_result_that_is_not_a_number_is_never_the_best():
    assert choose([10, 20, 30], {10: math.nan, 20: 0.1}) == [10]
    assert choose([10, 20, 30], {10: math.inf, 20: 0.1}) == [10]


def test_results_of_steps_that_are_not_there_count_for_nothing():
    assert choose([20, 30], {10: 1.0, 20: 0.5}) == []


def test_random_histories_keep_what_they_must_and_nothing_else():
    rng = random.Random(0)
    for _ in range(2000):
        steps = rng.sample(range(1, 50), rng.randint(0, 12))
        values = {step: rng.choice([0.1, 0.2, 0.3, math.nan]) for step in rng.sample(range(1, 50), rng.randint(0, 30))}
        mode, latest, best = rng.choice(["max", "min"]), rng.randint(0, 4), rng.randint(0, 3)
        gone = choose(steps, values, keep_latest=latest, best_mode=mode, keep_best=best)
        kept = sorted(set(steps) - set(gone))
        newest = sorted(steps)[-max(1, latest) :]
        scored = {step: values[step] for step in steps if not math.isnan(values.get(step, math.nan))}
        sign = 1 if mode == "max" else -1

        assert gone == sorted(set(gone)) and set(gone) <= set(steps)
        assert set(newest) <= set(kept)
        assert len(kept) <= len(newest) + best
        # Every step that beats one that is kept for its result, or equals it and is earlier, is kept as well.
        for low in set(kept) - set(newest):
            for high in scored:
                better = sign * (scored[high] - scored[low])
                assert high in kept or better < 0 or (better == 0 and high > low)
        # A choice once made is stable.
        assert choose(kept, values, keep_latest=latest, best_mode=mode, keep_best=best) == []


def test_ranking_is_best_first():
    results = {1: {"a": 0.3}, 2: {"a": 0.5}, 3: {"b": 9.0}, 4: {"a": 0.5}}
    assert ranking(results, "a", "max") == [2, 4, 1]
    assert ranking(results, "a", "min") == [1, 2, 4]


def test_results_outlive_the_process_and_add_up(tmp_path):
    retention = Retention(tmp_path / "checkpoints", 1, ACCURACY)
    retention.record(9, {ACCURACY: 0.5})
    retention.record(10, {ACCURACY: 0.75, "heldout/loss": math.nan})
    retention.record(10, {"other/loss": 2.0})
    again = Retention(tmp_path / "checkpoints", 1, ACCURACY)
    assert again.best() == (10, 0.75)
    assert again.to_delete([8, 9, 10, 11]) == [8, 9]
    stored = read_results(tmp_path / "checkpoints")
    assert stored[9] == {ACCURACY: 0.5}
    assert stored[10].keys() == {ACCURACY, "heldout/loss", "other/loss"} and math.isnan(stored[10]["heldout/loss"])
    text = (tmp_path / "checkpoints" / RESULTS).read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


@pytest.mark.faults
def test_results_that_a_disk_refuses_are_known_and_written_later(tmp_path):
    subject = Retention(tmp_path, 2, "heldout/loss", "min")
    (tmp_path / RESULTS / "in the way").mkdir(parents=True)
    with pytest.raises(RunError, match=r"results\.json: cannot be written \(Is a directory\)"):
        subject.record(1, {"heldout/loss": 0.5})
    assert subject.best() == (1, 0.5)
    (tmp_path / RESULTS / "in the way").rmdir()
    (tmp_path / RESULTS).rmdir()
    subject.flush()
    assert read_results(tmp_path) == {1: {"heldout/loss": 0.5}}


def test_there_is_no_best_before_a_result(tmp_path):
    assert Retention(tmp_path, 1, ACCURACY).best() is None
    assert Retention(tmp_path, 1).best() is None


def test_a_damaged_file_is_named(tmp_path):
    for text in ("{", '{"10": 3}', '{"ten": {}}', "[]"):
        (tmp_path / RESULTS).write_text(text)
        with pytest.raises(CheckpointError, match=r"results\.json: cannot be read .* Move it away"):
            read_results(tmp_path)
