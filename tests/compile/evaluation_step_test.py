"""An evaluation step calls the program that was compiled for its batches; others compile one, with a warning."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_step import evaluation_step, first_difference
from engine.config.schema import MeshSpec
from engine.data.batch import abstract_batch
from engine.data.source import example_spec
from engine.training.state import Weights
from tests import runs, zoo


@pytest.mark.slow
def test_compiled_program_and_jitted_function_give_equal_results():
    cases: list[dict[str, Any]] = [
        {},
        dict(mesh=MeshSpec(fsdp=8)),
        dict(mesh=MeshSpec(data=8), precision="bfloat16", layout={"zero1": True}),  # which splits the parameters
    ]
    said: list[str] = []
    for settings in cases:
        program = zoo.program(zoo.Classify(width=64), **settings)
        said.clear()
        evaluations, state = program.evaluation, program.init()
        batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
        point = evaluations.point(0, 0)
        step, _, _ = evaluation_step(evaluations, example_spec(zoo.source()), 16)
        expected = step(dict(state.params), dict(state.model_state), batch, point, None)
        weights = Weights(dict(program.abstract_state.params), dict(program.abstract_state.model_state))
        step.compile("evaluation", weights, abstract(16, program), ProgramCompiler(say=said.append))
        with runs.compilations() as compiled:
            found = step(dict(state.params), dict(state.model_state), batch, point, None)
        assert compiled == []
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.array_equal(x, y)
        assert said == []
        other = {path: jax.device_get(x).astype(np.float16) for path, x in state.params.items()}
        with runs.compilations() as compiled:
            for _ in range(2):
                step(other, dict(state.model_state), batch, point, None)  # of a hook, say
        assert [name for name, _ in compiled] == ["jit(step)"]
        [warning] = said
        assert "evaluation: another program is compiled" in warning
        assert "params/head/bias is float16[4], not float32[4]" in warning


def abstract(rows, program):
    return abstract_batch(example_spec(zoo.source()), rows, program.spec.batch_sharding)


def test_difference_names_the_argument():
    whole, split = (NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), PartitionSpec(*s)) for s in ((), ("x",)))
    x, y = (jax.ShapeDtypeStruct((4,), jnp.float32, sharding=s) for s in (whole, split))
    compiled = jax.jit(lambda p, s: p["a"] + p["b"] + s).lower({"a": x, "b": y}, x).compile()
    here = jax.device_put(np.zeros(4, np.float32), whole)
    there = jax.device_put(here, split)
    for params, state, text in [
        ({"a": here, "b": there}, here, ""),
        ({"a": here, "b": here}, here, "params/b is split as (), not as ('x',)"),
        ({"a": here, "b": there}, np.zeros(3, np.float32), "model_state is float32[3], not float32[4]"),
        ({"a": here}, here, "params/b is missing"),
        ({"a": here, "b": there, "c": here}, here, "params/c is new"),
    ]:
        assert first_difference(compiled, (params, state)) == text


def test_unused_argument_may_have_any_sharding():
    whole, split = (NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), PartitionSpec(*s)) for s in ((), ("x",)))
    x = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=whole)
    compiled = jax.jit(lambda p, s: p["b"] + s).lower({"a": x, "b": x}, x).compile()
    here = jax.device_put(np.zeros(4, np.float32), whole)
    there = jax.device_put(here, split)
    assert first_difference(compiled, ({"a": there, "b": here}, here)) == ""
    assert first_difference(compiled, ({"a": here, "b": there}, here)) == "params/b is split as ('x',), not as ()"


class Failing:
    """A program that fails in its own code."""

    def __init__(self, compiled):
        self.args_info, self.input_shardings = compiled.args_info, compiled.input_shardings

    def __call__(self, *arguments):
        raise ValueError("of the program")


def test_error_of_a_program_is_not_taken_for_other_arrays():
    program = zoo.program(zoo.Classify())
    evaluations, state = program.evaluation, program.init()
    step, _, _ = evaluation_step(evaluations, example_spec(zoo.source()), 16)
    weights = Weights(dict(program.abstract_state.params), dict(program.abstract_state.model_state))
    compiler: Any = SimpleNamespace(compile=lambda name, lowered, mesh: Failing(lowered.compile()), say=print)
    step.compile("evaluation", weights, abstract(16, program), compiler)
    batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
    with pytest.raises(ValueError, match="of the program"):
        step(dict(state.params), dict(state.model_state), batch, evaluations.point(0, 0), None)
