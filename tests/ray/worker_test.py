"""The class of the actor, in this process; `pool_test.py` runs it in actors."""

import os
import pickle
import sys

import pytest

from engine.base.errors import ConfigError, DataError, FieldError
from engine.ray.worker import Setup, Worker


def fails(job, report):
    report(2)
    if job == "exit":
        sys.exit(3)
    raise {"field": FieldError("a.b", "unknown", "Remove it."), "value": ValueError("no such job")}[job]


def doubles(job, report):
    report(3)
    return 2 * job


@pytest.fixture
def restored(monkeypatch, tmp_path):
    """Restores what a worker changes in its process."""
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CONVOY_TEST_OF_WORKER", "before")
    return tmp_path


def setup(folder, files=()):
    return Setup(str(folder), [str(folder)], {"CONVOY_TEST_OF_WORKER": "after"}, [str(path) for path in files])


def test_worker_takes_over_the_folder_the_path_and_the_environment(restored):
    worker = Worker()
    assert worker.start(setup(restored), pickle.dumps(doubles)).error is None
    assert os.getcwd() == str(restored) and sys.path[-1] == str(restored)
    assert os.environ["CONVOY_TEST_OF_WORKER"] == "after"
    answer = worker.do(pickle.dumps(4))
    assert (pickle.loads(answer.pickled), answer.examples, worker.examples()) == (8, 3, 3)


def test_files_that_a_node_does_not_see_are_named(restored):
    for missing in (setup(restored, [restored / "a.tfrecord"]), setup(restored / "gone")):
        error = Worker().start(missing, pickle.dumps(doubles)).error
        assert isinstance(error, DataError)
        name = restored / ("gone" if missing.folder.endswith("gone") else "a.tfrecord")
        assert f"{name}: does not exist on " in str(error)
        assert str(error).endswith("Put it on a disk that all nodes share under this path.")


def test_code_that_a_node_cannot_load_is_one_sentence(restored):
    error = Worker().start(setup(restored), b"cno_such_module\nname\n.").error
    assert isinstance(error, DataError) and "No module named 'no_such_module'" in str(error)


@pytest.mark.parametrize(
    ("job", "kind", "text"),
    [
        ("field", ConfigError, "a.b: unknown. Remove it."),
        ("value", DataError, "ValueError: no such job ("),
        ("exit", DataError, "the code ended the process with sys.exit(3)"),
    ],
)
def test_error_of_a_job_keeps_its_class_and_its_text(restored, job, kind, text):
    worker = Worker()
    worker.start(setup(restored), pickle.dumps(fails))
    error = pickle.loads(pickle.dumps(worker.do(pickle.dumps(job)).error))
    assert isinstance(error, kind) and text in str(error)
