"""A run with `optimizer.mup`: the features and logits of a language model change by the same, whatever its width.

The coordinate check of Yang et al. 2022, appendix D.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.compile.build import build_program, build_task
from engine.config.schema import Config
from engine.data.source import ArraySource
from engine.parallel.mesh import make_mesh
from tests import runs, zoo

LENGTH, VOCABULARY, STEPS = 8, 16, 3
BASE = 16


def batch(seed: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (8, LENGTH + 1)).astype(np.int32)
    shape = (8, LENGTH)
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones(shape, np.int32), "weight": np.ones(shape, np.float32),
    }  # fmt: skip


def config(width: int, **settings: Any) -> Config:
    return runs.config(
        task__target="models.decoder.LanguageModel", task__width=width, task__hidden=2 * width, task__depth=2,
        task__heads=width // 8, task__vocabulary=VOCABULARY, optimizer__target="optax.adamw",
        optimizer__learning_rate=0.003, optimizer__schedule="constant", optimizer__clip_norm=None,
        train__global_batch_size=8, **settings,
    )  # fmt: skip


def build(config: Config):
    examples = batch(0)
    source = ArraySource(examples)
    return build_program(build_task(config.task), make_mesh(config.mesh, jax.devices()[:1]), source, config)[0]


def changes(width: int, **settings: Any) -> tuple[float, float]:
    """Returns the root mean square of the change of the features and of the logits after some steps."""
    program = build(config(width, **settings))

    def results(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        module: Any = program.spec.model.module(params, {}, None)
        features, _ = module.features(inputs, None)
        return features, features @ module.head.kernel.get_value()

    state = program.init()
    found = [jax.jit(results)(state.params, batch(99))]
    for seed in range(STEPS):
        placed = jax.device_put(zoo.batch(batch(seed)), program.spec.batch_sharding)
        state, _ = program.steps(1)(state, (placed,), program.skip_mask((False,)))
    found.append(jax.jit(results)(state.params, batch(99)))
    features, logits = (float(jnp.sqrt(jnp.mean((x - y) ** 2))) for x, y in zip(*found, strict=True))
    return features, logits


MUP = {"width": BASE, "hidden": 2 * BASE, "heads": BASE // 8}


@pytest.mark.slow
def test_updates_of_a_wide_model_change_its_results_as_those_of_the_base_model():
    narrow, wide, without = changes(BASE), changes(8 * BASE, optimizer__mup=MUP), changes(8 * BASE)
    grown = np.array([wide, without]) / np.array(narrow)
    assert grown[0, 0] < 1.4 and 0.4 < grown[0, 1] < 1.1, grown  # logits: less noise of the initial head
    assert grown[1, 0] > 1.7 and grown[1, 1] > 2, grown


def test_base_width_leaves_the_optimizer_of_that_width_unchanged():
    program = build(config(BASE, optimizer__mup=MUP))
    assert set(program.spec.optimizer.factors.values()) == {1.0} and not program.spec.model.init_scales
    wide = build(config(2 * BASE, optimizer__mup=MUP)).spec
    assert wide.optimizer.factors["head/kernel"] == wide.optimizer.factors["stack/layers/attention/out/kernel"] == 0.5
    assert wide.model.init_scales == {"head/kernel": 0.5**0.5}
    assert "muP: shape in the base model" in wide.optimizer.details[-1]


@pytest.mark.parametrize(
    ("mup", "text"),
    [
        ({"widht": 16}, "optimizer.mup: the base model: task.widht: "),
        (
            {"tied": True},
            "optimizer.mup: the base model and the model do not have the same parameters: head/ker",
        ),
    ],
)
def test_base_model_that_cannot_be_built_is_an_error_of_the_setting(mup, text):
    with pytest.raises(ConfigError) as error:
        build(config(BASE, optimizer__mup=mup))
    assert str(error.value).startswith(text)
