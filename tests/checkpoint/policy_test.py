import json
import math
import os
import random
import socket
import subprocess
import sys
import textwrap

import pytest

from engine.base.duration import Duration
from engine.base.errors import CheckpointError, RunError
from engine.checkpoint.policy import RESULTS, Retention, SavePolicy, ranking, read_results

TOTAL = 1000
ACCURACY = "heldout/accuracy"


class Clock:
    """A fake clock that tests advance."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def policy(every: str | None, clock=None, total_steps=TOTAL) -> SavePolicy:
    duration = None if every is None else Duration.parse(every, "checkpoint.every")
    return SavePolicy(duration, batch_size=8, dataset_size=100, total_steps=total_steps, clock=clock or Clock())


def test_save_policy_by_steps():
    saves = policy("300 steps")
    assert [step for step in range(TOTAL + 1) if saves.due(step)] == [300, 600, 900, 1000]
    assert [saves.next_step(step) for step in (0, 299, 300, 900)] == [300, 300, 600, 1000]


def test_save_policy_by_epochs():
    saves = policy("1 epoch")
    assert [step for step in range(40) if saves.due(step)] == [13, 25, 38]


def test_save_policy_none_saves_only_the_last_step():
    saves = policy(None)
    assert [step for step in range(TOTAL + 1) if saves.due(step)] == [TOTAL]


def due_times(saves, clock, seconds_of_step, steps):
    """Returns when saves were due, in seconds since the start, in a loop with steps of the given duration."""
    start, found = clock.now, []
    for step in range(steps):
        if saves.due(step):
            found.append(clock.now - start)
        clock.now += seconds_of_step(step)
    return found


def test_save_policy_by_the_clock():
    clock = Clock()
    found = due_times(policy("10 minutes", clock, total_steps=10**6), clock, lambda step: 0.5, 6000)
    assert found == pytest.approx([600, 1200, 1800, 2400], abs=0.5)


def test_clock_policy_with_steps_longer_than_the_period():
    clock = Clock()
    assert due_times(policy("1 second", clock), clock, lambda step: 5.0, 4) == [5, 10, 15]


def test_clock_policy_is_punctual_after_a_slow_first_step():
    clock = Clock()
    found = due_times(
        policy("10 minutes", clock, total_steps=10**6), clock, lambda step: 90.0 if step == 0 else 0.01, 120_000
    )
    assert found == pytest.approx([600, 1200], abs=0.1)


def test_clock_policy_is_punctual_after_fast_first_steps():
    """The loop runs several steps ahead of the device before it waits for a result."""
    clock = Clock()
    found = due_times(
        policy("10 minutes", clock, total_steps=10**6), clock, lambda step: 0.001 if step < 3 else 1.0, 2000
    )
    assert found == pytest.approx([600, 1200, 1800], abs=1.1)


def test_clock_policy_delay_is_at_most_the_slowdown_of_a_step():
    clock = Clock()
    found = due_times(
        policy("10 minutes", clock, total_steps=10**6), clock, lambda step: 0.1 if step < 1000 else 0.2, 6000
    )
    assert found[0] == pytest.approx(600, abs=0.2)


def test_clock_policy_rarely_reads_the_clock():
    class CountingClock(Clock):
        reads = 0

        def __call__(self) -> float:
            self.reads += 1
            return self.now

    clock = CountingClock()
    due_times(policy("10 minutes", clock, total_steps=10**6), clock, lambda step: 0.01, 60_001)
    assert clock.reads < 30


def test_clock_policy_never_saves_the_first_and_always_the_last_step():
    clock = Clock()
    saves = policy("10 minutes", clock)
    assert not saves.due(700)
    assert saves.due(TOTAL)


def test_due_returns_the_same_answer_for_the_same_step():
    clock = Clock()
    saves = policy("10 minutes", clock)
    saves.due(1)
    clock.now += 601
    assert saves.due(2) and saves.due(2)
    assert not saves.due(3)


@pytest.mark.parametrize("every", ["300 steps", "1 epoch", None, "10 seconds", "10 minutes"])
@pytest.mark.parametrize("k", [1, 8])
def test_steps_before_next_step_are_not_due(every, k):
    """A loop with k steps per dispatch gets equal answers from calls at each boundary and from `next_step` on only."""
    found = []
    for always in (True, False):
        clock, step, due, next_step = Clock(), 0, [], 0
        saves = policy(every, clock)
        while step <= TOTAL:
            if always or step >= next_step:
                due += [step] if saves.due(step) else []
                next_step = saves.next_step(step)
                assert next_step > step or step == TOTAL
            step += min(k, max(1, TOTAL - step))
            clock.now += 0.5
        found.append(due)
    assert found[0] == found[1]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_processes_with_different_clocks_save_at_the_same_steps():
    """Two processes; the clock of the second process runs ten times too fast."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = textwrap.dedent("""
        import sys, jax
        rank = int(sys.argv[1])
        jax.distributed.initialize(sys.argv[2], 2, rank, coordinator_bind_address=sys.argv[2])
        from engine.checkpoint.policy import SavePolicy
        from engine.base.duration import Duration
        now = 0.0
        saves = SavePolicy(Duration(10, "seconds"), 8, 100, 10_000, clock=lambda: now)
        due = []
        for step in range(100):
            if saves.due(step):
                due.append(step)
            now += 1.0 if rank == 0 else 10.0
        print("due", due, flush=True)
        jax.distributed.shutdown()
    """)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), address], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    due = f"due {[10 * i for i in range(1, 10)]}\n"
    assert [output[output.index("due") :] for output in outputs] == [due, due]


@pytest.fixture
def choose(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    def choose(steps, values=None, *, keep_latest=1, best: str | None = ACCURACY, best_mode="max", keep_best=1):
        (folder / RESULTS).write_text(json.dumps({step: {ACCURACY: value} for step, value in (values or {}).items()}))
        return Retention(folder, keep_latest, best, best_mode, keep_best).to_delete(steps)

    return choose


def test_retention_keeps_the_newest_steps(choose):
    assert choose([10, 20, 30, 40], keep_latest=2, best=None) == [10, 20]


def test_retention_keeps_the_best_in_addition_to_the_newest(choose):
    values = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.6}
    assert choose([10, 20, 30, 40], values) == [10, 30]
    assert choose([10, 20, 30, 40], values, best_mode="min") == [20, 30]
    assert choose([10, 20, 30, 40], values, keep_best=2) == [10]
    assert choose([10, 20, 30, 40], values, best_mode="auto") == [10, 30]  # the largest accuracy


def test_best_mode_auto_keeps_the_smallest_loss():
    results = {10: {"heldout/loss": 0.5}, 20: {"heldout/loss": 0.9}}
    assert ranking(results, "heldout/loss", "auto") == [10, 20]


def test_retention_keeps_the_earlier_of_equal_results(choose):
    assert choose([10, 20, 30], {10: 0.9, 20: 0.9}) == [20]
    assert choose([10, 20, 30], {10: 0.9, 20: 0.9}, best_mode="min") == [20]


def test_retention_always_keeps_the_newest_step(choose):
    assert choose([10, 20], {10: 0.9}, keep_latest=0, keep_best=0) == [10]


def test_non_finite_result_is_never_the_best(choose):
    assert choose([10, 20, 30], {10: math.nan, 20: 0.1}) == [10]
    assert choose([10, 20, 30], {10: math.inf, 20: 0.1}) == [10]


def test_results_of_deleted_steps_do_not_count(choose):
    assert choose([20, 30], {10: 1.0, 20: 0.5}) == []


def test_retention_is_minimal_and_stable_for_random_histories(choose):
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
        # A step that is better than a step kept for its result, or equal and earlier, is kept as well.
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


def test_results_persist_and_accumulate(tmp_path):
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
def test_results_that_cannot_be_written_are_kept_and_written_later(tmp_path):
    subject = Retention(tmp_path, 2, "heldout/loss", "min")
    (tmp_path / RESULTS / "in the way").mkdir(parents=True)
    with pytest.raises(RunError, match=r"results\.json: cannot be written \(Is a directory\)"):
        subject.record(1, {"heldout/loss": 0.5})
    assert subject.best() == (1, 0.5)
    (tmp_path / RESULTS / "in the way").rmdir()
    (tmp_path / RESULTS).rmdir()
    subject.flush()
    assert read_results(tmp_path) == {1: {"heldout/loss": 0.5}}


def test_best_is_none_without_results(tmp_path):
    assert Retention(tmp_path, 1, ACCURACY).best() is None
    assert Retention(tmp_path, 1).best() is None


def test_invalid_results_file_raises(tmp_path):
    for text in ("{", '{"10": 3}', '{"ten": {}}', "[]"):
        (tmp_path / RESULTS).write_text(text)
        with pytest.raises(CheckpointError, match=r"results\.json: cannot be read .* Move it away"):
            read_results(tmp_path)
