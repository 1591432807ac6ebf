"""The matrices of Muon follow from the loss: not from names, and not from the mesh."""

from typing import Any

import jax
import pytest

from engine import Task
from engine.config.schema import MeshSpec
from engine.data.batch import abstract_batch
from engine.training import muon
from engine.training import parameter_uses as uses
from engine.training.muon_choice import choose
from tests import zoo
from tests.training.muon_test import Copy, Own, Renamed


def chosen(task: Task, **settings: Any) -> tuple[muon.MuonChoice, Any]:
    """Returns the choice for a Task and its model."""
    program = zoo.program(task, **settings)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    return choose(program.spec, abstract_batch(example, 16, program.spec.batch_sharding)), program.spec.model


def test_choice_follows_the_loss_and_not_the_names():
    choice, model = chosen(Renamed())
    assert choice.matrices == {
        "head/query/kernel": ((0,), (1, 2)), "head/key/kernel": ((0,), (1, 2)), "head/value/kernel": ((0,), (1, 2)),
        "head/out/kernel": ((0, 1), (2,)), "embed": ((0,), (1,)),
    }  # fmt: skip
    assert {path: choice.reasons[path] for path in ("class_token", "bias_table", "fc/kernel", "tokens/embedding")} == {
        "class_token": uses.ELEMENTWISE,
        "bias_table": uses.LOOKED_UP,
        "fc/kernel": muon.OUTPUT,
        "tokens/embedding": uses.LOOKED_UP,
    }
    assert choice.matrices.keys() | choice.reasons.keys() == model.params.keys()
    assert muon.MuonChoice.from_text(choice.to_text()) == choice
    table = choice.table(model.params, "Adam")
    assert table.startswith(f"Muon orthogonalises 5 of {len(model.params)} parameters; Adam updates the others:")
    assert "\n  head/out/kernel: Muon  32 x 32\n" in table and "\n  fc/kernel: Adam  an output layer" in table
    with pytest.raises(ValueError, match="muon is missing"):
        muon.MuonChoice.from_text("{}")


@pytest.mark.parametrize("settings", [{"mesh": MeshSpec(fsdp=2, tensor=2), "devices": 4}, {"accumulate": 4}], ids=str)
def test_choice_is_the_same_on_every_mesh(settings):
    stacked = {"inner/layers/up/kernel": ((1,), (2,)), "inner/layers/down/kernel": ((1,), (2,))}
    assert chosen(Copy(), **settings)[0].matrices == chosen(Copy())[0].matrices == stacked


def test_own_update_is_judged_by_the_first_use_of_each_parameter():
    assert chosen(Own())[0].matrices.keys() == {"hidden/0/kernel", "hidden/1/kernel"}
