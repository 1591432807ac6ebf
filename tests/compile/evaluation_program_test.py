"""The evaluation program: the same weights and shardings as the train state, without data or an optimizer."""

import pytest

from engine.compile.build import build_evaluation_program
from engine.compile.evaluation_step import evaluation_step
from engine.config.schema import MeshSpec
from engine.data.source import example_spec
from engine.parallel.mesh import make_mesh
from tests import runs, zoo


@pytest.mark.parametrize("averaged", [False, True])
def test_abstract_weights_are_those_of_the_train_state(averaged):
    program = zoo.program(zoo.Classify("cnn"), mesh=MeshSpec(data=2, fsdp=4), ema_decay=0.9 if averaged else None)
    weights, state = program.evaluation.abstract_weights(averaged), program.abstract_state
    assert weights.model_state  # batch statistics
    assert (weights.params, weights.model_state, weights.ema) == (state.params, state.model_state, state.ema)


def test_program_of_a_config_evaluates_without_a_dataset():
    config = runs.config(data={"target": "tests.no_such.source"}, mesh__data=8)
    program = build_evaluation_program(zoo.Classify(), make_mesh(config.mesh), config.train, config.sharding, "")
    _, states, by_row = evaluation_step(program, example_spec(zoo.source()), 16)
    assert states.names == ("accuracy", "loss")
    assert by_row
