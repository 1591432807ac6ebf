import dataclasses

import pytest

from engine.config import schema
from engine.config.schema import Config, Optimizer, field_names

SECTIONS = [
    value for value in vars(schema).values() if dataclasses.is_dataclass(value) and value.__module__ == schema.__name__
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_sections_are_frozen_and_keyword_only(section):
    with pytest.raises(dataclasses.FrozenInstanceError):
        section().anything = 1
    with pytest.raises(TypeError):
        section(1)


def test_field_names_are_in_schema_order_without_arguments():
    assert field_names(Optimizer)[:2] == ["target", "learning_rate"]
    assert "arguments" not in field_names(Optimizer)
    assert field_names(Config)[:3] == ["name", "task", "data"]
