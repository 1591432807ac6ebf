"""Muon: its formula, the same result on every mesh, and the work of each device."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_dtypes import bfloat16

from engine.compile.collectives import collectives, summed
from engine.compile.hlo_text import HloText
from engine.config.schema import MeshSpec
from engine.optimizers.orthogonalized import COEFFICIENTS, muon, orthogonalise
from tests.optimizers.cases import MATRICES, SHAPES, Run, arrays, matrices

MESHES = {"fsdp=8": MeshSpec(fsdp=8), "fsdp=4,tensor=2": MeshSpec(fsdp=4, tensor=2)}


def transformation():
    return muon(0.02, weight_decay=0.1, adam_learning_rate=optax.constant_schedule(0.003), matrices=matrices)


@pytest.fixture(scope="module")
def one():
    """The parameters after three steps on one device."""
    return Run(transformation()).train(3)


@pytest.fixture(scope="module")
def split():
    """The step on each mesh, compiled once."""
    return functools.cache(lambda mesh: Run(transformation(), MESHES[mesh]))


def iterated(x):
    """The iteration of `torch.optim.Muon` in numpy; `x` is [rows, columns].

    Each sum of a product and a matrix is computed in float32, with the coefficients, and rounds to bfloat16.
    """
    a, b, c = COEFFICIENTS
    x = whole(x.astype(bfloat16))
    x = whole((x / (np.linalg.norm(x) + 1e-7)).astype(bfloat16))
    for _ in range(5):
        square = whole((x @ x.T).astype(bfloat16))
        polynomial = whole((b * square + c * (square @ square)).astype(bfloat16))
        x = whole((a * x + polynomial @ x).astype(bfloat16))
    return x.astype(np.float64)


def whole(x):
    return x.astype(np.float32)


def relative(found, expected, start):
    """Returns the norm of the difference of what two runs changed, relative to the change."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected - start)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_update_is_that_of_the_author(shape, nesterov):
    rng = np.random.default_rng(0)
    start = rng.normal(size=shape)
    tx = muon(optax.linear_schedule(0.1, 0.3, 2), momentum=0.8, nesterov=nesterov, weight_decay=0.5)
    params: Any
    update, params = jax.jit(tx.update), {"x": jnp.asarray(start, jnp.float32)}
    state, momentum, expected = tx.init(params), np.zeros(shape), start
    for step in range(3):
        g = rng.normal(size=shape)
        updates, state = update({"x": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        momentum = 0.8 * momentum + 0.2 * g
        direction = 0.8 * momentum + 0.2 * g if nesterov else momentum
        found = iterated(direction) if shape[0] < shape[1] else iterated(direction.T).T
        rate = 0.1 * (step + 1)
        expected = (1 - 0.5 * rate) * expected - rate * max(1, shape[1] / shape[0]) ** 0.5 * found
    assert relative(params["x"], expected, start) < 1e-5


def test_singular_values_become_about_one():
    x = jax.random.normal(jax.random.key(0), (2, 16, 64))
    values = jnp.linalg.svd(orthogonalise(x).astype(jnp.float32), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.25


def test_scale_rms_has_the_size_of_updates_of_adam():
    params = {"x": jax.random.normal(jax.random.key(0), (64, 256))}
    tx = muon(1.0, scale="rms")
    updates: Any
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert 0.15 < np.sqrt(np.mean(updates["x"] ** 2)) < 0.25


def test_other_parameters_have_adamw_with_its_own_learning_rate(one):
    adam = optax.adamw(0.003, b2=0.95, weight_decay=0.1)
    others = SHAPES.keys() - MATRICES.keys()
    params = {path: arrays(0)[path] for path in others}

    def step(params, state, grads):
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    for seed in (1, 2, 3):
        params, state = jax.jit(step)(params, state, {path: arrays(seed)[path] for path in others})
    for path in others:
        np.testing.assert_allclose(one[path], params[path], rtol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)  # meshes_test.py has those with experts and a pipeline
def test_parameters_are_those_of_one_device_on_meshes(one, split, mesh):
    """A momentum that rounds to another number in bfloat16 changes one matrix by less than 0.5 % of its update."""
    found = split(mesh).train(3)
    for path, start in arrays(0).items():
        assert relative(found[path], one[path], start) < 0.005, path


def test_each_device_iterates_its_share_without_communication(split):
    """Nine matrices of 16 x 48 and four of 16 x 16, on 8 devices: two of the one size and one of the other on each."""
    program = HloText.parse(split("fsdp=8").compiled.as_text() or "")
    loops = [i for _, _, i in program.executed() if i.opcode == "while"]
    assert [program.trip_count(loop) for loop in loops] == [5, 5]
    assert sorted(re.findall(r"bf16\[[\d,]+\]", "".join(i.shape for i in loops))) == ["bf16[1,16,16]", "bf16[2,16,48]"]
    for loop in loops:
        [body] = loop.callees("body")
        inside, names = [], [body]
        while names:
            inside += (found := program.computations[names.pop()])
            names += [name for i in found for name in i.callees()]
        assert sum(i.opcode == "dot" for i in inside) == 3
        assert [i.name for i in inside if re.match(r"all-|reduce-scatter|collective", i.opcode)] == []


@pytest.mark.parametrize("mesh", ["fsdp=8", "fsdp=4,tensor=2"])
def test_matrices_travel_to_their_device_and_back_without_being_gathered(split, mesh):
    """A gather of all matrices would receive as many bytes as they have, and send them once more on the way back."""
    run = split(mesh)
    found = summed(collectives(run.compiled.as_text() or "", run.mesh))
    assert {c.kind for c in found} <= {"all-to-all", "collective-permute"}
    size = sum(np.prod(SHAPES[path]) * 4 for path in MATRICES)
    assert sum(c.moved for c in found) < 0.8 * size
