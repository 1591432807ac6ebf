"""The types that every package uses are real types."""

from typing import Any, TypeAliasType, get_args

from engine.types import Json, PyTree


def test_a_tree_is_the_one_alias_of_any():
    assert PyTree.__value__ is Any


def test_json_is_what_json_can_hold():
    assert isinstance(Json, TypeAliasType)
    assert {int, float, str, bool, type(None)} <= set(get_args(Json.__value__))
