"""A run directory that is moved or removed while the run trains."""

import shutil
import time
from pathlib import Path

import pytest

from tests import runs
from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


@pytest.mark.case("a run directory that goes away")
@pytest.mark.parametrize(("what", "processes"), [("moved", 2), ("removed", 1)])
def test_run_directory_that_goes_away_ends_the_run_with_a_sentence(what, processes, tmp_path, add_row):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    where = harness.config(tmp_path / "config", pause=0.1, train__total="1000 steps", log__examples=False)
    with harness.Job("train", where, f"--workdir={run}", processes=processes) as job:
        job.until(lambda: harness.saved(run))
        if what == "moved":
            run.rename(elsewhere)
        else:
            shutil.rmtree(run, ignore_errors=True)
            shutil.rmtree(run, ignore_errors=True)  # a save may have written to it meanwhile
        gone_at = time.monotonic()
        assert job.end() == 43, job.output
        took = time.monotonic() - gone_at
        assert f"DirectoryGone: {run}: " in job.output and "Traceback" not in job.output, job.output
        moved = f"the run directory was moved to {elsewhere} while the run trained" in job.output
    assert moved == (what == "moved")
    if moved:
        assert harness.state_hashes(elsewhere)  # the newest checkpoint is readable
        left = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
        assert all(map(of_unfinished_save, left)), left
    assert took <= runs.limit(30)
    add_row(f"run directory {what}, {processes} process(es)", detected_s=took, code=43)


def of_unfinished_save(path: Path) -> bool:
    """Whether a save that was in progress may have written a file: Orbax makes the folders that it misses again.

    The status is written wherever there is a run directory.
    """
    return path.parts == ("status.json",) or (path.parts[0] == "checkpoints" and path.parts[1].endswith(".saving"))
