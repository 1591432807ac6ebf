"""The policy alone: what it decides from the results of steps, told or not to hold an update back."""

import numpy as np
import pytest

from engine.resilience.divergence import IN_A_ROW, Diverged, Divergence

NAMES = ("loss", "grad_norm", "learning_rate", "skipped")


class Loop:
    """A loop whose batches are bad, or whose state is spoilt by the update of one of them."""

    def __init__(self, policy, bad=(), spoilt_by=None, finite=False, saved=4):
        self.told, self.bad, self.spoilt_by, self.finite, self.saved = [], set(bad), spoilt_by, finite, saved
        self.policy = Divergence(policy, NAMES, self.told.append)
        self.went_back = 0

    def run(self, start=0, stop=60, k=1):
        """Steps to the end, K at a time, results arriving at once; returns the batches that are skipped."""
        step, spoilt = start, False
        while step < stop:
            if self.policy.rollback(step, [2, self.saved], False):
                step, spoilt = self.saved, False
                self.went_back += 1
                assert self.went_back < 100, "it goes back for ever"
                continue
            held = self.policy.skips(step, k)
            values = np.zeros((k, len(NAMES), 2))
            for i in range(k):
                bad = spoilt or step + i in self.bad
                values[i, 0, 0] = 1e9 if self.finite else np.nan if bad else 0.5
                values[i, 3, 0] = bad or held[i]
                spoilt |= step + i == self.spoilt_by and not held[i]
            self.policy.take(step, values)
            step += k
        assert not self.policy.rollback(stop, [2, self.saved], True)
        return sorted(self.policy.skipped)


def test_stop_ends_at_the_first_bad_batch_and_says_what_to_do():
    with pytest.raises(Diverged, match=r"step 8: the loss or its gradient is not finite; .* checkpoints: 2, 4\. ") as e:
        Loop("stop", [7]).run()
    assert e.value.exit_code == 43
    with pytest.raises(Diverged, match="step 8: the loss is a spike"):
        Loop("stop", [7], finite=True).run()


def test_of_several_that_are_read_at_once_the_first_one_is_told():
    policy = Loop("stop").policy
    values = np.full((3, len(NAMES), 2), np.nan)
    values[:, 3, 0], values[0, :2] = 1, 1e9  # a spike, and what is not finite after it
    policy.take(7, values)
    with pytest.raises(Diverged, match="step 8: the loss is a spike"):
        policy.rollback(10, [4], False)


@pytest.mark.parametrize("k", [1, 4])
def test_skip_counts_and_names_the_bad_batches(k):
    loop = Loop("skip", [7, 8, 20])
    assert loop.run(k=k) == [7, 8, 20]
    assert [text.split(":")[1] for text in loop.told] == [" step 8", " step 9", " step 21"]
    assert not loop.went_back


def test_too_many_in_a_row_are_no_bad_luck():
    row = range(7, 7 + IN_A_ROW)
    assert Loop("skip", row[:-1]).run() == list(row[:-1])
    for k in (1, 20):  # of 20 that are read at once some good ones follow the row
        with pytest.raises(Diverged, match=rf"; {IN_A_ROW} updates in a row were skipped"):
            Loop("skip", row).run(k=k)


@pytest.mark.parametrize("k", [1, 4])
def test_rollback_goes_on_without_the_batches_after_which_a_good_one_follows(k):
    loop = Loop("rollback", [7, 8, 22])
    assert loop.run(k=k) == [7, 8, 22]
    assert loop.went_back == 2
    assert loop.told[0].startswith("warning: step 8: the loss or its gradient is not finite; ")
    assert loop.told[0].endswith("going back to step 4, to go on without batches 7, 8")


@pytest.mark.parametrize("k", [1, 8, 20])
def test_rollback_looks_for_the_update_that_spoilt_the_state_before_a_long_row(k):
    loop = Loop("rollback", spoilt_by=9)
    assert loop.run(k=k, stop=60) == [9]
    assert loop.went_back == 1


def test_the_batches_before_a_long_row_are_skipped_by_1_2_4():
    """The row begins at batch 30, whatever is skipped: the state was spoilt slowly."""
    late = Divergence("rollback", NAMES, print)
    for count, skipped in ((1, 1), (2, 3), (4, 7)):
        values = np.zeros((IN_A_ROW + count, len(NAMES), 2))
        values[:, 3, 0] = 1
        late.take(30 - (skipped - count), values)
        assert late.rollback(40, [2], False)
        assert late.skipped == set(range(30 - skipped, 30))


def test_rollback_ends_where_no_batch_is_left_to_blame():
    with pytest.raises(Diverged, match="also without the batches since the checkpoint of step 4"):
        Loop("rollback", spoilt_by=3).run()


def test_nothing_is_saved_before_it_is_known_whether_the_state_is_spoilt_and_the_end_decides():
    policy = Loop("rollback").policy
    values = np.zeros((2, len(NAMES), 2))
    values[:, 3, 0] = 1
    policy.take(7, values)
    assert not policy.rollback(9, [4], False)
    assert policy.asks
    assert policy.rollback(9, [4], True)
    assert policy.skipped == {7, 8}
    assert not policy.asks


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_state_that_is_not_finite_though_no_loss_told_is_never_saved(policy):
    with pytest.raises(Diverged, match="step 12: params/w holds numbers that are not finite"):
        Loop(policy).policy.rollback(12, [4], False, ["params/w"])


def test_rollback_blames_the_last_update_for_a_state_that_is_not_finite():
    policy = Loop("rollback").policy
    assert policy.rollback(12, [4], False, ["params/w"])
    assert policy.skipped == {11}


def test_batches_that_a_checkpoint_names_are_held_back():
    policy = Loop("stop").policy
    policy.resume([3, 5])
    assert policy.skips(2, 4) == (False, True, False, True)
    loop = Loop("stop", [5])
    loop.policy.resume([5])
    assert loop.run() == [5]
