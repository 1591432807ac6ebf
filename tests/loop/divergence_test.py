"""The divergence policy alone: its decisions from the results of steps, with and without skipped updates."""

import numpy as np
import pytest

from engine.loop.divergence import MAX_BAD_IN_A_ROW, BadBatch, BadBatches, Diverged, Divergence, End, RollBack, Series

NAMES = ("loss", "grad_norm", "learning_rate", "skipped")


def must_roll_back(policy, step, checkpoints, ending, broken=(), explain=lambda batch: ""):
    """Acts on a decision as the loop does. Returns whether the run returns to its newest checkpoint."""
    decision = policy.decide(step, checkpoints, ending, broken)
    if isinstance(decision, End):
        raise decision.error("" if decision.explained is None else explain(decision.explained))
    if isinstance(decision, RollBack):
        policy.roll_back(decision)
    return decision is not None


class Loop:
    """A fake training loop with bad batches, or with one batch whose update corrupts the state."""

    def __init__(self, policy, bad=(), corrupted_by=None, finite=False, saved=4):
        self.messages, self.bad, self.corrupted_by, self.finite, self.saved = [], set(bad), corrupted_by, finite, saved
        self.policy = Divergence(policy, NAMES, self.messages.append)
        self.rollbacks = 0

    def run(self, start=0, stop=60, k=1):
        """Runs to the end, `k` steps at a time, with immediate results; returns the skipped batches."""
        step, corrupted = start, False
        while step < stop:
            if must_roll_back(self.policy, step, [2, self.saved], False):
                step, corrupted = self.saved, False
                self.rollbacks += 1
                assert self.rollbacks < 100, "endless rollbacks"
                continue
            skipped = self.policy.skip_mask(step, k)
            values = np.zeros((k, len(NAMES), 2))
            for i in range(k):
                bad = corrupted or step + i in self.bad
                values[i, 0, 0] = 1e9 if self.finite else np.nan if bad else 0.5
                values[i, 3, 0] = bad or skipped[i]
                corrupted |= step + i == self.corrupted_by and not skipped[i]
            self.policy.add_results(step, values)
            step += k
        assert not must_roll_back(self.policy, stop, [2, self.saved], True)
        return sorted(self.policy.skipped)


def test_stop_raises_at_the_first_bad_batch_with_advice():
    with pytest.raises(Diverged, match=r"step 8: the loss is not finite; .* checkpoints: 2, 4\. ") as e:
        Loop("stop", [7]).run()
    assert e.value.exit_code == 43
    with pytest.raises(Diverged, match="step 8: the loss is a spike"):
        Loop("stop", [7], finite=True).run()


def test_gradient_and_loss_are_told_apart_and_explained_before_the_end():
    values = np.zeros((2, len(NAMES), 2))
    values[:, 3, 0], values[0, 1, 0] = 1, np.inf
    policy = Loop("stop").policy
    policy.add_results(7, values)
    with pytest.raises(Diverged, match=r"step 8: the gradient of a finite loss is not finite; .* Batch 7\. Check"):
        must_roll_back(policy, 10, [4], False, explain=lambda batch: f"Batch {batch}. ")


def test_first_of_several_bad_batches_is_reported():
    policy = Loop("stop").policy
    values = np.full((3, len(NAMES), 2), np.nan)
    values[:, 3, 0], values[0, :2] = 1, 1e9  # a spike, followed by non-finite losses
    policy.add_results(7, values)
    with pytest.raises(Diverged, match="step 8: the loss is a spike"):
        must_roll_back(policy, 10, [4], False)


@pytest.mark.parametrize("k", [1, 4])
def test_skip_policy_skips_and_names_bad_batches(k):
    loop = Loop("skip", [7, 8, 20])
    assert loop.run(k=k) == [7, 8, 20]
    assert [text.split(":")[1] for text in loop.messages] == [" step 8", " step 9", " step 21"]
    assert not loop.rollbacks


def test_skip_policy_raises_after_too_many_bad_batches_in_a_row():
    row = range(7, 7 + MAX_BAD_IN_A_ROW)
    assert Loop("skip", row[:-1]).run() == list(row[:-1])
    for k in (1, 20):  # with 20 results at once, good batches follow the row
        with pytest.raises(Diverged, match=rf"; {MAX_BAD_IN_A_ROW} updates in a row were skipped"):
            Loop("skip", row).run(k=k)


@pytest.mark.parametrize("k", [1, 4])
def test_rollback_skips_bad_batches_followed_by_a_good_batch(k):
    loop = Loop("rollback", [7, 8, 22])
    assert loop.run(k=k) == [7, 8, 22]
    assert loop.rollbacks == 2
    assert loop.messages[0].startswith("warning: step 8: the loss is not finite; ")
    assert loop.messages[0].endswith("rolling back to step 4 to continue without batches 7, 8")


@pytest.mark.parametrize("k", [1, 8, 20])
def test_rollback_skips_the_batch_before_a_long_row_of_bad_batches(k):
    loop = Loop("rollback", corrupted_by=9)
    assert loop.run(k=k, stop=60) == [9]
    assert loop.rollbacks == 1


def test_rollback_skips_1_2_4_batches_before_a_long_row():
    """The row begins at batch 30, whatever is skipped: the state is corrupted gradually."""
    late = Divergence("rollback", NAMES, print)
    for count, skipped in ((1, 1), (2, 3), (4, 7)):
        values = np.zeros((MAX_BAD_IN_A_ROW + count, len(NAMES), 2))
        values[:, 3, 0] = 1
        late.add_results(30 - (skipped - count), values)
        assert must_roll_back(late, 40, [2], False)
        assert late.skipped == set(range(30 - skipped, 30))


def test_rollback_raises_when_no_batch_is_left_to_skip():
    with pytest.raises(Diverged, match="no batch is left to skip since the checkpoint of step 4"):
        Loop("rollback", corrupted_by=3).run()


def test_rollback_waits_for_more_results_unless_the_run_is_ending():
    policy = Loop("rollback").policy
    values = np.zeros((2, len(NAMES), 2))
    values[:, 3, 0] = 1
    policy.add_results(7, values)
    assert not must_roll_back(policy, 9, [4], False)
    assert policy.pending
    assert must_roll_back(policy, 9, [4], True)
    assert policy.skipped == {7, 8}
    assert not policy.pending


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_non_finite_state_with_finite_losses_raises(policy):
    with pytest.raises(Diverged, match="step 12: params/w has values that are not finite"):
        must_roll_back(Loop(policy).policy, 12, [4], False, ["params/w"])


def test_at_most_three_arrays_are_named():
    with pytest.raises(Diverged, match=r"step 12: a, b, c and 2 more have values that are not finite\. Check"):
        must_roll_back(Loop("stop").policy, 12, [4], False, ["a", "b", "c", "d", "e"])


def test_rollback_skips_the_batch_before_a_non_finite_state():
    policy = Loop("rollback").policy
    assert must_roll_back(policy, 12, [4], False, ["params/w"])
    assert policy.skipped == {11}


def test_batches_named_by_a_checkpoint_are_skipped():
    policy = Loop("stop").policy
    policy.resume([3, 5])
    assert policy.skip_mask(2, 4) == (False, True, False, True)
    loop = Loop("stop", [5])
    loop.policy.resume([5])
    assert loop.run() == [5]


COLUMNS = ("loss", "grad_norm", "skipped")


def results(*steps):
    """Metrics of steps, each given as (loss, norm of the gradient, skipped)."""
    return np.stack([np.array(steps, np.float32), np.ones((len(steps), len(COLUMNS)))], axis=-1)


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (np.nan, np.nan, "the loss is not finite"),
        (1.0, np.inf, "the gradient of a finite loss is not finite"),
        (1e9, 1.0, "the loss is a spike"),
    ],
)
def test_skipped_update_is_a_bad_batch_with_its_problem(loss, norm, problem):
    bad = BadBatches(COLUMNS)
    assert bad.add_results(7, results((1, 1, 0), (loss, norm, 1), (1, 1, 0)), set()) == [BadBatch(8, problem)]
    assert bad.undecided == [BadBatch(8, problem)] and bad.in_a_row == 0 and bad.series is None


def test_batch_of_the_skip_mask_is_not_bad_but_counts_in_a_row():
    bad = BadBatches(COLUMNS)
    assert bad.add_results(7, results((1, 1, 1)), {7}) == []
    assert bad.in_a_row == 1


def test_series_starts_at_the_first_skipped_batch_and_is_kept_after_a_good_step():
    bad = BadBatches(COLUMNS)
    bad.add_results(5, results(*[(1, 1, 1)] * MAX_BAD_IN_A_ROW, (1, 1, 0)), {5, 6})
    assert (bad.series, bad.in_a_row) == (Series(start=5, first_bad=7), 0)
    bad.clear()
    assert (bad.series, bad.undecided) == (None, [])
