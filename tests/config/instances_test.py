"""Sections of objects describe them, and refuse to build them."""

import dataclasses

import pytest

from engine.base.errors import ConfigError
from engine.config import defaults, to_text, validate
from engine.config.instances import section_of
from engine.config.schema import Target
from engine.config.target import build, check
from engine.config.text import from_text


@dataclasses.dataclass
class Forecast:
    """Any object."""

    function: object = print
    width: int = 5


def test_section_names_the_class_and_the_plain_fields_of_a_dataclass():
    assert section_of(Forecast()) == {
        "target": "engine.config.instances.Instance",
        "type": f"{__name__}.Forecast",
        "fields": {"width": 5},
    }
    assert section_of(Target()).keys() == {"target", "type", "fields"}
    assert section_of([1, 2]) == {"target": "engine.config.instances.Instance", "type": "builtins.list"}


def test_section_survives_the_config_file_and_says_what_to_pass_again():
    c = defaults()
    c.task, c.data = section_of(Forecast()), section_of([1, 2])
    config = validate(c)
    stored = from_text(to_text(config), "x")
    assert stored == config
    target = Target(target=stored.task.target, arguments=stored.task.arguments)
    check(target, "task")
    with pytest.raises(ConfigError, match=r"an object of \S+Forecast, .* engine.load\(run, task=...\)"):
        build(target, "task")
