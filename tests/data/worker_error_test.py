from engine.data.worker_error import ended_at_start


def test_worker_that_ends_before_it_is_listed_is_reported_from_the_error_of_grain():
    killed = ended_at_start(RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search"))
    left = ended_at_start(RuntimeError("Worker process was terminated unexpectedly with exit code 7. Search"))
    assert killed is not None and left is not None
    assert str(killed).startswith("a data worker that was starting was killed by SIGKILL, probably for lack of memory.")
    assert str(left).startswith("a data worker that was starting ended by itself with exit code 7:")
    assert (killed.exit_code, left.exit_code) == (42, 1)
    assert ended_at_start(RuntimeError("another error")) is None
