"""Dotted paths of earlier releases: they resolve, and a resume does not take them for another dataset."""

import importlib.util

import pytest

from engine.config import defaults, validate
from engine.config.identity import identity_differences
from engine.config.old_names import MOVED, current
from engine.config.schema import Target
from engine.config.target import resolve
from engine.config.text import from_text, to_text


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_old_module_is_gone_and_its_new_one_exists(old, new):
    assert importlib.util.find_spec(old) is None and importlib.util.find_spec(new) is not None


def test_old_path_resolves_to_the_class_of_today():
    old = Target(target="engine.data.array_record.ArrayRecordSource")
    with pytest.warns(
        FutureWarning, match=r"^data.target: 'engine.data.array_record.*Use 'engine.readers.array_record"
    ):
        found = resolve(old, "data")
    assert found is resolve(Target(target="engine.readers.ArrayRecordSource"), "data")


def test_stored_config_with_an_old_path_has_the_path_of_today():
    text = "task.target: x.Task\ndata.target: engine.Mixture\ndata.sources.a.target: engine.data.array_record.A\n"
    stored = to_text(from_text(text, "runs/a/config.txt")).splitlines()
    assert "data.sources.a.target: engine.readers.array_record.A" in stored


def test_other_paths_are_unchanged():
    for path in ("engine.Weighted", "models.digits.Digits", "engine.data.array_record", "engine"):
        assert current(path) == path


def test_old_and_new_path_are_the_same_identity_also_inside_a_mixture():
    def config(module):
        c = defaults()
        c.task = dict(target="x.Task")
        source = dict(target=f"{module}.ArrayRecordSource", pattern="a")
        c.data = dict(target="engine.Mixture", sources=dict(a=source), weights=dict(a=1.0))
        c.train.total = "1 step"
        return validate(c)

    old, new, other = map(config, ("engine.data.array_record", "engine.readers.array_record", "other"))
    assert identity_differences(old, new) == []
    assert len(identity_differences(old, other)) == 1
