"""An evaluation step calls the program that was compiled for its batches, and any other arrays compile one."""

from typing import Any

import jax
import numpy as np

from engine.config.schema import MeshSpec
from engine.data.source import example_spec
from engine.training.compiler import Compiler
from engine.training.state import Weights
from tests import runs, zoo


def test_compiled_program_and_jitted_function_give_equal_results():
    cases: list[dict[str, Any]] = [
        {},
        dict(mesh=MeshSpec(fsdp=8)),
        dict(mesh=MeshSpec(data=8), precision="bfloat16", layout={"zero1": True}),  # which splits the parameters
    ]
    for settings in cases:
        program = zoo.program(zoo.Classify(width=64), **settings)
        evaluations, state = program.evaluation, program.init()
        batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
        point = evaluations.point(0, 0)
        step, _, _ = evaluations.evaluation(example_spec(zoo.source()), 16)
        expected = step(dict(state.params), dict(state.model_state), batch, point, None)
        weights = Weights(dict(program.abstract_state.params), dict(program.abstract_state.model_state))
        step.compile("evaluation", weights, 16, program.spec.batch_sharding, Compiler())
        with runs.compilations() as compiled:
            found = step(dict(state.params), dict(state.model_state), batch, point, None)
        assert compiled == []
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.array_equal(x, y)
        other = {path: jax.device_get(x).astype(np.float16) for path, x in state.params.items()}
        with runs.compilations() as compiled:
            step(other, dict(state.model_state), batch, point, None)  # of a hook, say
        assert [name for name, _ in compiled] == ["jit(step)"]
