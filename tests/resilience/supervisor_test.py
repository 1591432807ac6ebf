"""Start again or stop: by exit code, by what repeated, by what came of it."""

import pytest

from engine.resilience.supervisor import Failure, Restart, Stop, Supervisor, kill_signature
from engine.resilience.timeouts import LONGEST_RESTART_S

KILL = "killed by SIGKILL"


def failure(code: int = 137, cause: str = KILL, step: int = 7, checkpoint: int | None = 5, **settings) -> Failure:
    return Failure(code, cause, step, checkpoint, **settings)


@pytest.mark.parametrize("code", [42, 134, 137, 139, 143])
def test_a_retried_exit_code_is_restarted(code):
    assert Supervisor(5).after(failure(code)) == Restart(1, 1.0)


@pytest.mark.parametrize("code", [0, 1, 43, 130, 2, 255])
def test_a_final_exit_code_is_not_restarted(code):
    assert Supervisor(5).after(failure(code)) == Stop(code)


def test_waits_double_up_to_a_bound_and_progress_resets_them():
    supervisor = Supervisor(None, first_wait_s=2)
    waits = [supervisor.after(failure(step=10 * i, checkpoint=None)) for i in range(7)]
    assert waits == [Restart(i + 1, min(LONGEST_RESTART_S, 2.0 * 2**i)) for i in range(7)]
    assert supervisor.after(failure(step=70, checkpoint=5)) == Restart(8, 2.0)
    assert supervisor.after(failure(step=80, checkpoint=5)) == Restart(9, 4.0)
    assert Supervisor(None).after(failure(42, "")) == Restart(1, 1.0)


def test_the_wait_stays_bounded_for_ever():
    supervisor = Supervisor(None)
    assert [supervisor.after(failure(42, "", 0, None)) for _ in range(2000)][-1] == Restart(2000, LONGEST_RESTART_S)


def after(*failures: Failure, checkpoint: int | None = 5, **settings):
    """What a supervisor says to the last of some failures, all before which it restarts."""
    supervisor = Supervisor(checkpoint, **settings)
    *before, last = failures
    for one in before:
        assert isinstance(supervisor.after(one), Restart)
    return supervisor.after(last)


def test_three_equal_failures_without_a_checkpoint_between_are_a_crash_loop():
    stop = after(
        failure(139, "killed by SIGSEGV"), failure(139, "killed by SIGSEGV"), failure(139, "killed by SIGSEGV")
    )
    assert stop == Stop(
        43,
        "3 attempts ended alike at step 7: killed by SIGSEGV; no new checkpoint came between them (the newest is that "
        "of step 5). Starting again would repeat it. Find out what happens there, then start the same command again.",
    )
    none = after(*[failure(42, "Hang at task.py:3 in loss", 0, None)] * 3, checkpoint=None)
    assert isinstance(none, Stop) and "at step 0: Hang at task.py:3 in loss;" in none.reason
    assert "(none was saved)" in none.reason


def test_the_loop_may_be_ahead_of_the_device_when_it_is_killed():
    assert isinstance(after(failure(step=7), failure(step=5), failure(step=6)), Stop)
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
def test_another_failure_is_not_counted_and_does_not_end_the_count(between):
    assert isinstance(after(failure(), between, failure(), between), Restart)
    assert isinstance(after(failure(), between, failure(), failure()), Stop)


def test_a_new_checkpoint_begins_the_count_anew():
    same = failure(step=10, checkpoint=9)
    assert isinstance(after(failure(step=10), failure(step=10), same, same), Restart)
    assert isinstance(after(failure(step=10), failure(step=10), same, same, same), Stop)
    fewer = failure(step=10, checkpoint=4)  # one was set aside: that is no progress
    assert isinstance(after(failure(step=10), fewer, fewer), Stop)


def test_what_came_from_outside_or_from_others_is_no_loop():
    assert after(*[failure(from_outside=True)] * 50) == Restart(50, 1.0)
    assert isinstance(after(*[failure(42, "")] * 50), Restart)
    assert kill_signature(143) == ""
    assert kill_signature(139) == "killed by SIGSEGV"


def test_restarts_may_be_bounded():
    assert after(failure(), most=0) == Stop(137, "the restarts allowed (0) are used up.")
    assert after(failure(step=1), failure(step=9), most=1) == Stop(137, "the restarts allowed (1) are used up.")
