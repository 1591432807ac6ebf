import importlib
import pkgutil

import pytest

import engine.submissions
from engine.submissions.format import SubmissionFormat

NAMES = sorted(module.name for module in pkgutil.iter_modules(engine.submissions.__path__) if module.name != "format")


@pytest.mark.parametrize("name", NAMES)
def test_every_module_has_a_format_that_names_what_it_needs(name):
    kind = importlib.import_module(f"engine.submissions.{name}").Format
    assert issubclass(kind, SubmissionFormat)
    assert kind.suffix.startswith(".") and kind.predictions and kind.entries
    assert all({**kind.predictions, **kind.entries}.values())
    assert not kind.__abstractmethods__
