"""Depths of layers from their paths, and the learning rates that decay with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.base.duration import RunSize
from engine.base.errors import ConfigError
from engine.config.schema import Group, MeshSpec, Optimizer
from engine.training.layer_decay import layer_depths, layer_scales
from engine.training.optimizer import build_optimizer
from tests import zoo

SIZE = RunSize(1, 1, 10)
SHAPES = {
    "backbone/patch_embed/kernel": (4, 2),
    "backbone/pos_embed": (3, 2),
    "backbone/blocks/0/mlp/0/kernel": (2, 2),
    "backbone/blocks/1/norm/scale": (2,),
    "backbone/norm/scale": (2,),
    "head/kernel": (2, 3),
}
FACTORS = dict(zip(SHAPES, (0.5**3, 0.5**3, 0.5**2, 0.5, 1.0, 1.0), strict=True))


def abstract(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def depths(*paths: str) -> list[int]:
    found = layer_depths(abstract(dict.fromkeys(paths, (2,))), {}, {})
    return [int(found[path]) for path in paths]


def test_embeddings_have_the_lowest_rate_and_the_head_the_highest():
    """BEiT, `get_num_layer_for_vit`: with n blocks, embeddings have decay ** (n + 1), block i has decay ** (n - i)."""
    scales, table = layer_scales(dict.fromkeys(SHAPES, 0.5), abstract(SHAPES), {}, {})
    assert {path: float(x) for path, x in scales.items()} == FACTORS
    assert table.splitlines() == [
        "layer_decay: depth, factor on the learning rate, parts of the model",
        "      0  1          backbone/norm, head",
        "      1  0.5        backbone/blocks/1",
        "      2  0.25       backbone/blocks/0",
        "      3  0.125      backbone/patch_embed, backbone/pos_embed",
    ]


def test_blocks_of_all_stages_are_in_one_order_and_a_stage_belongs_to_its_first_block():
    paths = ("stem/k", "stages/0/blocks/0/k", "stages/0/blocks/1/k", "stages/1/down/k", "stages/1/blocks/0/k", "fc/k")
    assert depths(*paths) == [4, 3, 2, 1, 1, 0]
    assert depths("conv1/k", "layer1/0/conv1/k", "layer1/1/conv1/k", "layer2/0/conv1/k", "fc/k") == [4, 3, 2, 1, 0]
    assert depths("a/9/k", "a/10/k") == [2, 1]  # by number, not by text


def test_lists_within_the_layers_of_a_stack_are_no_layers():
    shapes = {"stack/layers/norms/0/scale": (4, 7), "stack/layers/norms/1/scale": (4, 7), "stack/layers/out": (4, 7)}
    names = dict.fromkeys(shapes, ("layers", None))
    found = layer_depths(abstract(shapes), names, dict.fromkeys(shapes, "norm"))
    assert [x.ravel().tolist() for x in found.values()] == [[4, 3, 2, 1]] * 3
    assert layer_depths(abstract(shapes), names, {})["stack/layers/norms/0/scale"][0] == 8, (
        "a run of an earlier version"
    )


def test_head_has_the_whole_rate_whatever_its_name():
    paths = ("token_head/k", "tokens/k", "layers/0/k")
    found = layer_depths(abstract(dict.fromkeys(paths, (2,))), {}, {"token_head/k": "head", "tokens/k": "embedding"})
    assert [int(found[path]) for path in paths] == [0, 2, 1]


def test_each_tower_counts_from_its_own_top():
    paths = ("image/embed/k", "image/blocks/0/k", "image/blocks/1/k", "text/embed/k", "text/blocks/0/k", "logit_scale")
    assert depths(*paths) == [3, 2, 1, 2, 1, 0]


def test_stack_has_a_vector_over_its_layers():
    shapes = {"stack/layers/norm/scale": (4, 7), "stack/layers/mlp/kernel": (2, 2, 5, 7), "embed/kernel": (3, 7)}
    names = {"stack/layers/norm/scale": ("layers", None), "stack/layers/mlp/kernel": ("repeats", "layers", None, None)}
    scales, table = layer_scales(dict.fromkeys(shapes, 0.5), abstract(shapes), names, {})
    np.testing.assert_array_equal(scales["stack/layers/norm/scale"], [[0.0625], [0.125], [0.25], [0.5]])
    np.testing.assert_array_equal(scales["stack/layers/mlp/kernel"].ravel(), scales["stack/layers/norm/scale"].ravel())
    assert scales["stack/layers/mlp/kernel"].shape == (2, 2, 1, 1)
    assert scales["embed/kernel"] == 0.5**5
    assert "1  0.5        stack/layers[3]" in table


def test_rates_equal_groups_with_constant_scales():
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in SHAPES.items()}
    settings: Any = dict(learning_rate=0.1, arguments={"weight_decay": 0.3}, decay="all", clip_norm=None)
    own: Any = build_optimizer(Optimizer(layer_decay=0.5, **settings), SIZE, params).tx
    rates = {path: optax.cosine_decay_schedule(0.1 * factor, 10) for path, factor in FACTORS.items()}
    by_optax: Any = optax.partition(
        {path: optax.adamw(rate, weight_decay=0.3) for path, rate in rates.items()}, {path: path for path in params}
    )
    found = []
    for tx in (own, by_optax):
        state, values = tx.init(params), params
        for step in range(3):
            grads = jax.tree.map(lambda x, step=step: x * (step + 1), params)
            change, state = tx.update(grads, state, values, grad_norm=optax.tree.norm(grads))
            values = optax.apply_updates(values, change)
        found.append(values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


def test_groups_have_their_own_decay():
    groups = {"backbone": Group(match="^backbone/", layer_decay=0.5)}
    config = Optimizer(target="optax.sgd", learning_rate=1.0, schedule="constant", clip_norm=None, groups=groups)
    params: Any = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    tx: Any = build_optimizer(config, SIZE, params).tx
    change, _ = tx.update(params, tx.init(params), params, grad_norm=jnp.float32(1))
    assert {path: -float(x.mean()) for path, x in change.items()} == FACTORS


def test_sharded_and_accumulated_steps_equal_those_of_one_device():
    settings: Any = dict(layer_decay=0.25, learning_rate=0.05)
    batches = zoo.batches(2)
    one, _ = zoo.run(zoo.program(zoo.Classify(width=8), **settings), batches)
    many = zoo.program(
        zoo.Classify(width=8), mesh=MeshSpec(data=2), devices=2, accumulate=2, layout={"zero1": True}, **settings
    )
    zoo.assert_close(zoo.run(many, batches)[0].params, one.params, 1e-5)


def test_model_without_layers_is_an_error():
    with pytest.raises(ConfigError, match=r"^optimizer.layer_decay: no trained parameter belongs to a numbered layer"):
        build_optimizer(Optimizer(layer_decay=0.5), SIZE, {"head/kernel": jnp.ones(2)})


def test_schedule_free_optimizer_is_an_error():
    config = Optimizer(target="optax.contrib.schedule_free_adamw", layer_decay=0.5)
    with pytest.raises(ConfigError, match=r"^optimizer.layer_decay: is set, but a schedule-free optimizer averages"):
        build_optimizer(config, SIZE, {"layers/0/kernel": jnp.ones(2)})
