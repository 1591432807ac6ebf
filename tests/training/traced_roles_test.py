"""The matrices of Muon follow from the loss: not from names, and not from the mesh."""

from typing import Any

import jax
import pytest

from engine import Task
from engine.config.schema import MeshSpec
from engine.data.batch import abstract_batch
from engine.training import parameter_uses as uses
from engine.training.roles import Roles
from engine.training.traced_roles import LAST, traced_roles
from tests import zoo
from tests.training.optimizer_parts_test import Copy, Own, Renamed


def chosen(task: Task, **settings: Any) -> tuple[Roles, Any]:
    """Returns the roles for a Task, and its model."""
    program = zoo.program(task, **settings)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    return traced_roles(program.spec, abstract_batch(example, 16, program.spec.batch_sharding)), program.spec.model


def test_choice_follows_the_loss_and_not_the_names():
    choice, model = chosen(Renamed())
    assert choice.matrices == {
        "head/query/kernel": ((0,), (1, 2)), "head/key/kernel": ((0,), (1, 2)), "head/value/kernel": ((0,), (1, 2)),
        "head/out/kernel": ((0, 1), (2,)), "embed": ((0,), (1,)),
    }  # fmt: skip
    found = {path: (choice.of[path], choice.reasons[path]) for path in choice.of}
    wanted = {
        "class_token": ("embedding", uses.ELEMENTWISE),
        "bias_table": ("embedding", uses.LOOKED_UP),
        "fc/kernel": ("head", LAST),
        "tokens/embedding": ("embedding", uses.LOOKED_UP),
        "fc/bias": ("bias", uses.ELEMENTWISE),
        "head/query/bias": ("bias", uses.ELEMENTWISE),
    }
    assert found.items() >= wanted.items()
    assert choice.of.keys() == model.params.keys()
    assert Roles.from_text(choice.to_text()) == choice
    lines = [line.split() for line in choice.table(model.params, {"head/out/kernel"}).splitlines()]
    assert ["head/out/kernel", "*", "matrix", "32", "x", "32", "multiplied", "with", "activations"] in lines
    assert ["head/query/bias", "bias", *uses.ELEMENTWISE.split()] in lines
    with pytest.raises(ValueError, match="roles is missing"):
        Roles.from_text("{}")


@pytest.mark.parametrize("settings", [{"mesh": MeshSpec(fsdp=2, tensor=2), "devices": 4}, {"accumulate": 4}], ids=str)
def test_choice_is_the_same_on_every_mesh(settings):
    stacked = {"inner/layers/up/kernel": ((1,), (2,)), "inner/layers/down/kernel": ((1,), (2,))}
    assert chosen(Copy(), **settings)[0].matrices == chosen(Copy())[0].matrices == stacked


def test_own_update_is_judged_by_the_first_use_of_each_parameter():
    assert chosen(Own())[0].matrices.keys() == {"hidden/0/kernel", "hidden/1/kernel"}
