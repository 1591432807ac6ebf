import pytest

from engine.submissions.files import find_format, format_names
from engine.submissions.format import SubmissionFormat


@pytest.mark.parametrize("name", format_names())
def test_every_module_has_a_format_that_names_what_it_needs(name):
    kind = find_format(name)
    assert issubclass(kind, SubmissionFormat)
    assert kind.suffix.startswith(".") and kind.predictions and kind.entries
    assert all({**kind.predictions, **kind.entries}.values())
    assert not kind.__abstractmethods__
