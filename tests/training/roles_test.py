"""Roles of parameters without a trace, and what follows them: weight decay, groups and matrices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import layers
from engine.base.errors import ConfigError, TaskError
from engine.config.schema import Group, Optimizer
from engine.training.model import describe
from engine.training.optimizer import build_optimizer
from engine.training.roles import Roles, declared_roles, earlier_roles, untraced_roles
from tests import zoo
from tests.training.optimizer_parts_test import MUON, ROLES, SIZE, random


def test_runs_of_earlier_versions_keep_the_choice_by_names():
    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    paths = ("body/kernel", "fc/kernel", "class_token", "head/out/kernel", "my_embed/kernel", "positions")
    params: Any = dict.fromkeys(paths, square)
    choice = earlier_roles(params, {})
    assert choice.is_earlier and choice.matrices.keys() == {"body/kernel", "fc/kernel", "class_token"}
    params = {"moe/up": jax.ShapeDtypeStruct((3, 2, 4, 4), jnp.float32), "table": square, "head/x": square}
    names = {"moe/up": ("layers", "expert", "embed", "mlp"), "table": ("vocab", "embed"), "head/x": ("layers", "mlp")}
    assert earlier_roles(params, names).matrices == {"moe/up": ((2,), (3,))}
    message = build_optimizer(MUON, SIZE, params, names).messages[0]
    assert message.startswith("Muon orthogonalises moe/up; Adam with Nesterov momentum updates table, head/x (the cho")


def test_declared_roles_and_those_of_flax_need_no_trace():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(1, 2, (3, 3), rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.tokens = nnx.Embed(4, 4, rngs=rngs)
            self.table, self.gain = nnx.Param(jnp.ones((3, 4)), role="norm"), nnx.Param(jnp.ones(4))
            self.up = layers.Dense(4, 8, axes=("embed", "mlp"), bias=True, rngs=rngs)
            self.skew_bias = nnx.Param(jnp.ones((2, 2)))

    @dataclasses.dataclass
    class Build(zoo.Classify):
        def build(self, rngs):
            return Model(rngs)

    model = describe(Build())
    found = untraced_roles(model.roles, model.params, model.names)
    assert found.of == {
        "conv/kernel": "convolution", "conv/bias": "bias", "norm/scale": "norm", "norm/bias": "bias",
        **{f"attention/{part}/{name}": role for part in ("query", "key", "value", "out")
           for name, role in (("kernel", "matrix"), ("bias", "bias"))},
        "tokens/embedding": "embedding", "table": "norm", "gain": "norm", "up/kernel": "matrix", "up/bias": "bias",
        "skew_bias": "bias",
    }  # fmt: skip
    earlier = earlier_roles(model.params, model.names)
    decayed = {path for path in found.of if found.decays("matrices", path) != earlier.decays("matrices", path)}
    assert decayed == {"attention/query/bias", "attention/key/bias", "attention/value/bias", "table", "skew_bias"}
    assert found.must_be_stored(earlier) and Roles.from_text(found.to_text()) == found
    found = untraced_roles({}, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, {})
    assert not found.must_be_stored(earlier_roles({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, {}))
    with pytest.raises(TaskError, match=r"table: the parameter declares role='nrm'\. Allowed: .*Did you mean"):
        declared_roles({"table": nnx.Param(jnp.ones(2), role="nrm")}, {})


def test_decay_and_groups_select_roles():
    config = Optimizer(
        learning_rate=1.0, schedule="constant", arguments={"weight_decay": 0.5}, decay="matrix, norm", clip_norm=None,
        groups={"outer": Group(roles="head", learning_rate_scale=2.0)},
    )  # fmt: skip
    optimizer, zeros = build_optimizer(config, SIZE, random(0), {}, ROLES), jax.tree.map(jnp.zeros_like, random(0))
    assert optimizer.labels == {"a/kernel": "", "a/scale": "", "b/kernel": "", "head/kernel": "outer"}
    updates: Any = optimizer.tx.update(zeros, optimizer.tx.init(random(0)), random(0), grad_norm=jnp.float32(0))[0]
    for path, x in random(0).items():
        np.testing.assert_allclose(updates[path], -0.5 * x if path != "head/kernel" else 0 * x)
    config = dataclasses.replace(config, groups={"none": Group(match="^a/", roles="head")})
    with pytest.raises(ConfigError, match=r"match = '\^a/' with roles = 'head' matches no .*a/kernel \(matrix\)"):
        build_optimizer(config, SIZE, random(0), {}, ROLES)


def test_text_of_an_earlier_version_keeps_its_matrices():
    text = '{"muon": {"a": [[0], [1]]}, "adam": {"b": "an output layer"}}'
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 4)), "c": jnp.ones(2)}
    found = Roles.from_text(text, earlier_roles(params, {}))
    assert found.matrices == {"a": ((0,), (1,))}
    assert {path: found.decays("matrices", path) for path in params} == {"a": True, "b": True, "c": False}
