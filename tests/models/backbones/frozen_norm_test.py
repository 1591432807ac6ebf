"""A ResNet whose batch statistics stay those of the checkpoint. meshes_test.py has the opposite, statistics of a batch.

One program serves all tests.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.references.backbones import without_values
from convoy_zoo.models.backbones import catalog
from convoy_zoo.models.backbones.classifier import Classifier
from convoy_zoo.models.backbones.resnet import FrozenNorm
from tests import zoo

TASK = Classifier(settings={"depth": (1,), "width": 2, "stem": 2, "bottleneck": False, "frozen_norm": True})


def batch(rows: int = 8) -> dict[str, np.ndarray]:
    """Noise with labels, whose statistics are not those of the checkpoint."""
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (rows, 8, 8), np.uint8), "label": rng.integers(0, 10, rows, np.int32)}


def distinct(state: Any) -> Any:
    """A state whose statistics are those of no batch."""
    values = {path: np.linspace(0.5, 2, x.size, dtype=x.dtype) for path, x in state.model_state.items()}
    return dataclasses.replace(state, model_state=values)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    """The states before and after two steps, on the host."""
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch())
    program = zoo.program(TASK, batch_size=8, example=example, learning_rate=0.1, trainable="^(?!.*bn)")
    step, state = program.trace(1).lower().compile(), distinct(program.init())
    before = jax.device_get(state)
    state = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), state, program.abstract_state)
    numbers = jax.device_put(program.spec.optimizer.numbers, jax.devices()[0])
    for _ in range(2):
        placed = jax.device_put(zoo.batch(batch()), program.spec.batch_sharding)
        state, _ = step(state, (placed,), program.skip_mask((False,)), numbers)
    return before, jax.device_get(state)


def module(state: Any) -> Any:
    """The model with the variables of a state."""
    model = nnx.eval_shape(lambda: TASK.build(nnx.Rngs(0)))
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        variable.set_value({**state.params, **state.model_state}["/".join(map(str, path))])
    return model


def test_statistics_and_scales_stay_those_of_the_checkpoint_while_the_rest_trains(trained):
    before, after = trained
    assert after.model_state.keys() == before.model_state.keys() and after.model_state
    assert all(np.array_equal(after.model_state[path], before.model_state[path]) for path in before.model_state)
    changed = {path for path in before.params if not np.array_equal(after.params[path], before.params[path])}
    assert changed == {path for path in before.params if "bn" not in path} and "conv1/kernel" in changed


def test_a_frozen_norm_computes_the_same_in_training_and_in_evaluation(trained):
    """Another row of the batch changes nothing, either."""
    model, x = module(trained[1]).bn1, np.random.default_rng(1).normal(3, 2, (4, 5, 5, 2)).astype(np.float32)
    model.train()
    training = model(x)
    np.testing.assert_array_equal(model(x[:1]), training[:1])
    scale, shift = (trained[1].params[f"bn1/{name}"] for name in ("scale", "bias"))
    mean, var = (trained[0].model_state[f"bn1/{name}"] for name in ("mean", "var"))
    np.testing.assert_allclose(training, (x - mean) / np.sqrt(var + 1e-5) * scale + shift, rtol=1e-5, atol=1e-6)
    model.eval()
    np.testing.assert_array_equal(model(x), training)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet50d", {"depth": (1, 1), "width": 2, "stem": 2}), ("regnety_004", {"depths": (1, 2), "widths": (8, 16)})],
)
def test_frozen_norm_reaches_every_normalisation_of_a_backbone(name, settings):
    for frozen in (False, True):
        module = without_values(lambda rngs, f=frozen: catalog.create(name, rngs=rngs, frozen_norm=f, **settings))
        norms = [one for _, one in nnx.iter_modules(module) if isinstance(one, nnx.BatchNorm)]
        assert len(norms) >= 8 and all(isinstance(one, FrozenNorm) == frozen for one in norms)
