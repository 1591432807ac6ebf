"""Norms of parameters, gradients and updates, against the step that follows, and the gradients of parts of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.config.schema import MeshSpec
from engine.diagnosis.gradient_norms import GradientNorms, parts_of
from engine.diagnosis.groups import Groups
from tests import zoo
from tests.diagnosis import stacked


@pytest.mark.slow
def test_norms_are_those_of_the_step_that_follows_also_in_a_pipeline_with_microbatches():
    program = zoo.program(stacked.Classify(), mesh=MeshSpec(pipeline=2, fsdp=2), devices=4, accumulate=2)
    batch = jax.device_put(zoo.batch(zoo.examples(16)), program.spec.batch_sharding)
    groups, state = Groups.of(program.spec.model), program.init()
    found = GradientNorms(program, groups).measure(state, batch)
    before = jax.tree.map(np.array, state.params)
    after, metrics = program.steps(1)(state, (batch,), program.skip_mask((False,)))

    names = list(program.metric_names)
    total = sum(np.sum(x) for x in found["grad"].values())
    assert np.sqrt(total) == pytest.approx(float(np.asarray(metrics)[0, names.index("grad_norm"), 0]), rel=1e-5)
    for path, x in before.items():
        axes = tuple(range(groups.leading.get(path, 0), x.ndim))
        np.testing.assert_allclose(found["param"][path], np.square(x).sum(axes), rtol=1e-5)
        change = np.square(np.asarray(after.params[path]) - x).sum(axes)
        np.testing.assert_allclose(found["update"][path], change, rtol=2e-3, atol=1e-9)
    assert found["update"]["decoder/layers/up/kernel"].shape == (stacked.LAYERS,)


def test_part_is_the_mean_square_of_the_gradients_of_the_parts():
    program = zoo.program(zoo.Classify(), batch_size=16)
    norms = GradientNorms(program, Groups.of(program.spec.model))
    assert norms.parts == 8
    state, examples = program.init(), {**zoo.examples(16), "valid": np.ones(16, np.float32)}
    found = norms.measure(state, zoo.batch(examples))
    path = "head/kernel"

    def loss(kernel, rows):
        module = program.spec.model.module({**state.params, path: kernel}, {}, None)
        result: Any = program.spec.task.loss(module, rows, None)
        return result.total.mean()

    rows = jax.tree.map(lambda x: jnp.stack([x[i::8] for i in range(8)]), examples)  # row r goes to part r mod 8
    each = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(state.params[path], rows))
    assert found["part"][path] == pytest.approx(np.mean([np.square(g).sum() for g in each]), rel=1e-4)
    assert found["grad"][path] == pytest.approx(np.square(np.mean(each, 0)).sum(), rel=1e-4)


def test_noise_is_measured_only_where_parts_have_the_gradients_of_their_rows():
    assert parts_of(zoo.program(zoo.Classify(), batch_size=12)) == 4
    assert parts_of(zoo.program(zoo.Classify(), batch_size=9)) == 1
    assert parts_of(zoo.program(zoo.Classify(), accumulate=4)) == 4
    assert parts_of(zoo.program(zoo.Classify("cnn"))) == 1, "its batch statistics are those of the whole batch"
    assert parts_of(zoo.program(zoo.Classify(), batch_size=16, mesh=MeshSpec(data=8), devices=8)) == 2
