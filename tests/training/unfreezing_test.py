"""Intervals of steps in which the same groups are frozen, and the optimizer state between them."""

import math
from typing import Any

import jax.numpy as jnp

from engine.base.duration import Duration, RunSize
from engine.config.schema import Group, Optimizer
from engine.training.unfreezing import Interval, intervals, with_new_groups


def groups(**until: str | None) -> dict[str, Group]:
    return {
        name: Group(match=name, frozen_until=None if text is None else Duration.parse(text))
        for name, text in until.items()
    }


def test_groups_are_unfrozen_one_after_the_other():
    """Of 64 examples in batches of 16, an epoch has 4 steps."""
    config = Optimizer(groups=groups(low="2 epochs", middle="3 steps", top=None, norm="3 steps", never="10 steps"))
    assert intervals(config, RunSize(16, 64, 10)) == [
        Interval(0, 3, frozenset({"low", "middle", "norm", "never"})),
        Interval(3, 8, frozenset({"low", "never"})),
        Interval(8, math.inf, frozenset({"never"})),
    ]


def test_stored_state_is_kept_and_new_groups_get_their_own():
    stored: Any = {"head": (jnp.ones(2), jnp.int32(3))}
    new: Any = {"head": (jnp.zeros(2), jnp.int32(0)), "body": (jnp.zeros(4), jnp.int32(0))}
    found = with_new_groups(stored, new)
    assert found == {"head": stored["head"], "body": new["body"]}
