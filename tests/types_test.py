"""The types that every package uses are real types."""

from typing import Any, TypeAliasType, get_args

import jax

from engine.types import Device, Json, PyTree


def test_a_tree_is_the_one_alias_of_any():
    assert PyTree.__value__ is Any


def test_json_is_what_json_can_hold():
    assert isinstance(Json, TypeAliasType)
    assert {int, float, str, bool, type(None)} <= set(get_args(Json.__value__))


def test_devices_of_jax_have_the_members_of_device():
    device: Device = jax.devices()[0]
    assert device.platform == "cpu" and device.device_kind
    assert device.default_memory().kind in {memory.kind for memory in device.addressable_memories()}
