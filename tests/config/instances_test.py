"""Sections of objects describe them, and refuse to build them."""

import dataclasses

import pytest

from engine.config import to_text
from engine.config.errors import ConfigError
from engine.config.instances import section_of
from engine.config.schema import Target
from engine.config.target import build, check
from engine.config.text import from_text
from tests import runs, zoo


def test_section_names_the_class_and_the_plain_fields_of_a_dataclass():
    section = section_of(zoo.Classify(width=5))
    assert section == {
        "target": "engine.config.instances.Instance",
        "type": "tests.zoo.Classify",
        "fields": {"model": "mlp", "width": 5, "dropout": 0.0},
    }
    assert section_of(zoo.source()).keys() == {"target", "type"}


def test_section_survives_the_config_file_and_says_what_to_pass_again():
    config = runs.config(task=section_of(zoo.Classify()))
    stored = from_text(to_text(config), "x")
    assert stored == config
    target = Target(target=stored.task.target, arguments=stored.task.arguments)
    check(target, "task")
    with pytest.raises(ConfigError, match=r"an object of tests.zoo.Classify, .* engine.load\(run, task=...\)"):
        build(target, "task")


def test_fields_that_are_not_plain_are_left_out():
    @dataclasses.dataclass
    class Odd:
        f: object
        n: int = 3

    assert section_of(Odd(f=print))["fields"] == {"n": 3}
