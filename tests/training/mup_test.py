"""The factors of muP on the learning rates and the initial weights, as in table 3 of the paper."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import ConfigError
from engine.config.schema import Optimizer
from engine.training import mup, parameter_uses
from engine.training.model import Model, describe
from engine.training.roles import Roles
from tests import zoo

# Path -> (role, dimensions that the product sums, and those of its result), of a model of width n.
PARAMETERS = {
    "embed/table": ("embedding", None),
    "in/kernel": ("matrix", ((0,), (1,))),
    "layers/query": ("matrix", ((1,), (2, 3))),
    "layers/bias": ("bias", None),
    "conv/kernel": ("convolution", None),
    "head/kernel": ("head", ((0,), (1,))),
}
LABELS = dict.fromkeys(PARAMETERS, "")
ROLES = Roles(
    {path: role for path, (role, _) in PARAMETERS.items()}, {},
    {path: found for path, (_, found) in PARAMETERS.items() if found}, is_traced=True,
)  # fmt: skip


def model(n: int, **changes: tuple[int, ...]) -> Model:
    shapes = {
        "embed/table": (50, n), "in/kernel": (3, n), "layers/query": (2, n, n // 4, 4), "layers/bias": (2, n),
        "conv/kernel": (3, 3, n, 2 * n), "head/kernel": (n, 10),
    } | changes  # fmt: skip
    found = describe(zoo.Classify("mlp"))
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    names = {"layers/query": ("layers", None, None, None), "layers/bias": ("layers", None)}
    return dataclasses.replace(found, params=params, names=names, trained=tuple(shapes))


@pytest.mark.parametrize(
    ("target", "rates"),
    [
        ("optax.adamw", [1, 1, 1 / 4, 1, 1 / 4, 1 / 4]),
        ("engine.optimizers.soap", [1, 1, 1 / 4, 1, 1 / 4, 1 / 4]),
        ("optax.sgd", [4, 4, 1, 4, 1, 1 / 4]),
        ("optax.contrib.muon", [1, 1, 1, 1, 1 / 4, 1 / 4]),
    ],
)
def test_factors_are_those_of_table_3(target, rates):
    found = mup.factors(Optimizer(target=target), model(64), model(16), ROLES, LABELS)
    assert dict(found.rates) == dict(zip(PARAMETERS, rates, strict=True))
    assert dict(found.inits) == {path: 0.5 if path == "head/kernel" else 1 for path in PARAMETERS}
    assert mup.with_inits(model(64), found).init_scales == {"head/kernel": 0.5}
    assert "head/kernel" in mup.table(model(64), model(16), found)


@pytest.mark.parametrize(
    ("changes", "target", "roles", "text"),
    [
        ({"more": (2,)}, "optax.adam", ROLES, "do not have the same parameters: more. Change widths only."),
        ({"layers/bias": (2, 2, 2)}, "optax.adam", ROLES, "layers/bias has 2 dimensions, and 3 in the base model. Cha"),
        ({}, "optax.lamb", ROLES, "no rule is known for optax.lamb. Optimizers with a rule: optax.adam, optax.adamw, "),
        (
            {}, "optax.adam", dataclasses.replace(ROLES, reasons={"embed/table": parameter_uses.TIED}),
            "embed/table is an embedding and the output layer, whose rules differ. Use a head of its own.",
        ),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused(changes, target, roles, text):
    with pytest.raises(ConfigError) as error:
        mup.factors(Optimizer(target=target), model(64), model(16, **changes), roles, LABELS)
    assert f"optimizer.mup: {text}" in str(error.value) or str(error.value).endswith(text)
