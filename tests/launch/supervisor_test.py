"""Restart or stop, depending on the exit code, on repeated failures and on progress."""

import pytest

from engine.launch.supervisor import Exit, Failure, Restart, Supervisor, kill_signature
from engine.launch.timeouts import LONGEST_RESTART_S

KILL = "killed by SIGKILL"


def failure(code: int = 137, signature: str = KILL, step: int = 7, checkpoint: int | None = 5, **settings) -> Failure:
    return Failure(code, signature, step, checkpoint, **settings)


@pytest.mark.parametrize("code", [42, 134, 137, 139, 143])
def test_retried_exit_codes_restart(code):
    assert Supervisor(5).after(failure(code)) == Restart(1, 1.0)


@pytest.mark.parametrize("code", [0, 1, 43, 130, 2, 255])
def test_final_exit_codes_stop(code):
    assert Supervisor(5).after(failure(code)) == Exit(code)


def test_waits_double_up_to_a_limit_and_progress_resets_them():
    supervisor = Supervisor(None, first_wait_s=2)
    waits = [supervisor.after(failure(step=10 * i, checkpoint=None)) for i in range(7)]
    assert waits == [Restart(i + 1, min(LONGEST_RESTART_S, 2.0 * 2**i)) for i in range(7)]
    assert supervisor.after(failure(step=70, checkpoint=5)) == Restart(8, 2.0)
    assert supervisor.after(failure(step=80, checkpoint=5)) == Restart(9, 4.0)
    assert Supervisor(None).after(failure(42, "")) == Restart(1, 1.0)


def test_wait_stays_at_its_limit_after_many_restarts():
    supervisor = Supervisor(None)
    assert [supervisor.after(failure(42, "", 0, None)) for _ in range(2000)][-1] == Restart(2000, LONGEST_RESTART_S)


def after(*failures: Failure, checkpoint: int | None = 5, **settings):
    """Returns the decision after the last failure; asserts that every earlier failure leads to a restart."""
    supervisor = Supervisor(checkpoint, **settings)
    *earlier, last = failures
    for item in earlier:
        assert isinstance(supervisor.after(item), Restart)
    return supervisor.after(last)


def test_three_identical_failures_without_a_new_checkpoint_are_a_crash_loop():
    stop = after(
        failure(139, "killed by SIGSEGV"), failure(139, "killed by SIGSEGV"), failure(139, "killed by SIGSEGV")
    )
    assert stop == Exit(
        43,
        "3 attempts failed identically at step 7: killed by SIGSEGV; no new checkpoint was saved between them (the "
        "newest is that of step 5). A restart would repeat the failure. Fix its cause, then start the same command "
        "again.",
    )
    none = after(*[failure(42, "Hang at task.py:3 in loss", 0, None)] * 3, checkpoint=None)
    assert isinstance(none, Exit) and "at step 0: Hang at task.py:3 in loss;" in none.reason
    assert "(none was saved)" in none.reason


def test_two_kills_for_lack_of_memory_at_one_step_are_a_crash_loop():
    stop = after(failure(out_of_memory=True), failure(step=9, out_of_memory=True))
    assert isinstance(stop, Exit) and stop.code == 43
    assert stop.reason.startswith(
        "2 attempts failed identically at step 9: the kernel killed a process for lack of memory"
    )
    assert "the newest is that of step 5" in stop.reason and "Use a smaller train.global_batch_size" in stop.reason
    assert isinstance(after(failure(out_of_memory=True), failure(step=40, out_of_memory=True)), Restart)
    assert isinstance(after(failure(), failure(out_of_memory=True)), Restart), "the first kill has another cause"
    newer = failure(checkpoint=6, out_of_memory=True)
    assert isinstance(after(failure(out_of_memory=True), newer), Restart)
    assert isinstance(after(failure(out_of_memory=True), newer, newer), Exit)


def test_crash_loop_steps_may_differ_by_the_steps_in_flight():
    assert isinstance(after(failure(step=7), failure(step=5), failure(step=6)), Exit)
    assert isinstance(after(failure(step=7), failure(step=4), failure(step=7)), Restart)


@pytest.mark.parametrize(
    "between",
    [
        failure(139, "killed by SIGSEGV"),
        failure(42, ""),
        failure(step=40),
        failure(from_outside=True),
    ],
)
def test_other_failures_neither_count_nor_reset_the_count(between):
    assert isinstance(after(failure(), between, failure(), between), Restart)
    assert isinstance(after(failure(), between, failure(), failure()), Exit)


def test_new_checkpoint_resets_the_failure_count():
    same = failure(step=10, checkpoint=9)
    assert isinstance(after(failure(step=10), failure(step=10), same, same), Restart)
    assert isinstance(after(failure(step=10), failure(step=10), same, same, same), Exit)
    fewer = failure(step=10, checkpoint=4)  # a checkpoint was set aside: no progress
    assert isinstance(after(failure(step=10), fewer, fewer), Exit)


def test_failures_caused_from_outside_are_no_crash_loop():
    assert after(*[failure(from_outside=True)] * 50) == Restart(50, 1.0)
    assert isinstance(after(*[failure(42, "")] * 50), Restart)
    assert kill_signature(143) == ""
    assert kill_signature(139) == "killed by SIGSEGV"


def test_maximum_number_of_restarts():
    assert after(failure(), max_restarts=0) == Exit(137, "the maximum number of restarts (0) is reached.")
    assert after(failure(step=1), failure(step=9), max_restarts=1) == Exit(
        137, "the maximum number of restarts (1) is reached."
    )
