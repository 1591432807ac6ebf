"""The shared types are real types."""

from typing import Any, TypeAliasType, get_args

import jax

from engine.base.types import Device, Json, PyTree


def test_pytree_is_an_alias_of_any():
    assert PyTree.__value__ is Any


def test_json_type_covers_all_json_values():
    assert isinstance(Json, TypeAliasType)
    assert {int, float, str, bool, type(None)} <= set(get_args(Json.__value__))


def test_jax_devices_have_the_members_of_device():
    device: Device = jax.devices()[0]
    assert device.platform == "cpu" and device.device_kind
    assert device.default_memory().kind in {memory.kind for memory in device.addressable_memories()}
