"""Worker processes read every format as the main process does: readers are pickled, and open their files again."""

import signal
import sys

import pytest

from tests import runs
from tests.readers.every_reader import KILLED_AFTER, STEPS, EveryReader, train, write_files
from tests.readers.table_files import labels

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


def test_run_on_every_reader_resumes_after_sigkill_with_other_workers(folder, tmp_path):
    """The killed process builds the indexes of the files, and worker processes read for it."""
    command = [sys.executable, "-m", "tests.readers.every_reader", folder, str(tmp_path / "run"), "1"]
    done = runs.run(command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = max(map(int, runs.saved_steps(tmp_path / "run")))
    assert 0 < saved < KILLED_AFTER
    train(folder, tmp_path / "run", workers=0)
    assert runs.status(tmp_path / "run")["attempt"] == 2
    train(folder, tmp_path / "whole", workers=0)
    places = runs.rows(tmp_path / "run", "places")
    assert places == runs.rows(tmp_path / "whole", "places")
    assert sorted(places) == list(range(1, STEPS + 1)) and len(set(places.values())) == STEPS


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    source = EveryReader(folder)
    whole = labels(source)
    assert len({label for batch in whole for label in batch}) > 20
    assert labels(source, workers=1) == labels(source, workers=2) == whole
