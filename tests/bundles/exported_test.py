"""Entry points of Tasks."""

import pytest

import engine
from engine.base.errors import TaskError
from engine.bundles.exported import Entry, entries_of
from engine.training.task import Task
from tests.bundles import subjects


def test_predict_and_marked_methods_are_entry_points_of_subclasses_too():
    class Further(subjects.Reader):
        pass

    found = entries_of(Further())
    assert [entry.name for entry in found] == ["predict", "certain", "embed"]
    assert found[1] == Entry("certain") and found[2].shapes == {"frames": "n, t, 16"}


def test_task_without_entry_points_is_refused():
    class Silent(Task):
        pass

    with pytest.raises(TaskError, match=r"Silent: has no entry point to export. Define predict\(self, model, batch\)"):
        entries_of(Silent())


def test_marked_predict_is_one_entry_point():
    class Marked(Task):
        @engine.exported(shapes={"x": "n"})
        def predict(self, model, batch):
            return batch

    assert [(entry.name, entry.shapes) for entry in entries_of(Marked())] == [("predict", {"x": "n"})]
