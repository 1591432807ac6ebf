import multiprocessing
import threading

import pytest

from engine.base.errors import ConfigError, DataError
from engine.base.host import usable_cores
from engine.cluster.exit_status import ExitStatus
from engine.datasets import pool
from tests.datasets import scans

pytestmark = pytest.mark.multiprocess


class Double:
    """Doubles integers."""

    def __init__(self):
        self.source = scans.Scans()

    def __call__(self, job, report):
        return scans.work(job, report)


def test_results_and_progress_do_not_depend_on_the_number_of_processes():
    for processes in (1, 2):
        reported = []
        found = dict(pool.run(Double(), range(7), processes, reported.append))
        assert found == {number: 2 * number for number in range(7)}
        assert sum(reported) == 7
    assert multiprocessing.active_children() == []


def test_results_come_in_the_order_of_the_jobs_as_early_as_possible():
    taken = []
    ordered = pool.in_order((number, taken.append(number) or f"result {number}") for number in (2, 0, 1, 4, 3))
    found = [(result, len(taken)) for result in ordered]
    assert found == [("result 0", 2), ("result 1", 3), ("result 2", 3), ("result 3", 5), ("result 4", 5)]


@pytest.mark.parametrize(
    ("job", "text", "code"),
    [
        ("kill", "was killed by SIGKILL, probably for lack of memory. Run the same command again", ExitStatus.RETRY),
        ("exit", "ended by itself with exit code 3", ExitStatus.USER_ERROR),
        ("fail", "ValueError: no such job", ExitStatus.USER_ERROR),
    ],
)
def test_failure_of_a_process_is_raised_and_ends_the_others(job, text, code):
    with pytest.raises((DataError, pool.ProcessError), match=text) as raised:
        dict(pool.run(Double(), [1, job, *range(50)], 2, lambda count: None))
    assert raised.value.exit_code == code
    assert multiprocessing.active_children() == []


def test_process_that_is_killed_after_its_last_job_does_not_matter():
    run = pool.run(Double(), [1, 2, 3], 2, lambda count: None)
    found = dict([next(run) for _ in range(3)])
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    assert list(run) == [] and found == {0: 2, 1: 4, 2: 6}


def test_source_that_cannot_be_pickled_is_reported():
    work = Double()
    work.source.lock = threading.Lock()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match=r"Scans cannot be sent to other processes \(.*one process: --processes=1"):
        dict(pool.run(work, [1, 2], 2, lambda count: None))


def test_number_of_processes_is_checked_and_at_most_that_of_the_jobs():
    assert pool.process_count(8, 3) == 3
    assert pool.process_count(None, 10**6) == usable_cores()
    with pytest.raises(ConfigError, match="processes = 0: allowed is a whole number from 1 to"):
        pool.process_count(0, 3)
