"""SOAP: the authors' formulas, the same result on every mesh, and the work of each device."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine.compile.hlo_text import HloText
from engine.config.schema import MeshSpec
from engine.optimizers.eigenbases import scale_by_soap, soap
from tests.optimizers.cases import MATRICES, SHAPES, Run, arrays, matrices

MESHES = {"fsdp=8": MeshSpec(fsdp=8), "fsdp=4,tensor=2": MeshSpec(fsdp=4, tensor=2)}


def transformation():
    """A square factor of a gradient with fewer columns has equal eigenvalues, 0, so its basis depends on rounding."""
    return soap(0.01, frequency=2, largest=16, matrices=matrices)


@pytest.fixture(scope="module")
def one():
    """The parameters after five steps on one device."""
    return Run(transformation()).train(5)


@pytest.fixture(scope="module")
def split():
    return Run(transformation(), MESHES["fsdp=8"])


class Authors:
    """The authors' update of one matrix (https://github.com/nikhilvyas/SOAP) in numpy, in float64."""

    def __init__(self, shape, b1, b2, frequency, largest):
        self.b1, self.b2, self.frequency = b1, b2, frequency
        self.factors = [np.zeros((n, n)) if n <= largest else None for n in shape]
        self.bases: list[Any] = [None if factor is None else np.eye(len(factor)) for factor in self.factors]
        self.mu, self.nu, self.step = np.zeros(shape), np.zeros(shape), 0

    def project(self, x, back=False):
        rows, columns = self.bases
        if rows is not None:
            x = (rows if back else rows.T) @ x
        if columns is not None:
            x = x @ (columns.T if back else columns)
        return x

    def update(self, g):
        if self.step == 0:
            self.learn(g)
            self.bases = [None if f is None else np.linalg.eigh(f)[1][:, ::-1] for f in self.factors]
            self.step += 1
            return np.zeros_like(g)
        rotated = self.project(g)
        self.mu = self.b1 * self.mu + (1 - self.b1) * rotated
        self.nu = self.b2 * self.nu + (1 - self.b2) * rotated**2
        size = np.sqrt(1 - self.b2**self.step) / (1 - self.b1**self.step)
        direction = self.project(self.mu / (np.sqrt(self.nu) + 1e-8), back=True) * size
        momentum = self.project(self.mu, back=True)
        self.learn(g)
        if self.step % self.frequency == 0:
            for axis, factor in enumerate(self.factors):
                if factor is not None:
                    basis = self.bases[axis]
                    order = np.argsort(-np.diag(basis.T @ factor @ basis))
                    self.nu = np.take(self.nu, order, axis)
                    self.bases[axis] = np.linalg.qr(factor @ basis[:, order])[0]
        self.mu = self.project(momentum)
        self.step += 1
        return direction

    def learn(self, g):
        for axis, product in enumerate((g @ g.T, g.T @ g)):
            if self.factors[axis] is not None:
                self.factors[axis] = self.b2 * self.factors[axis] + (1 - self.b2) * product


@pytest.mark.parametrize(("shape", "largest"), [((8, 8), 100), ((6, 10), 6), ((10, 6), 6), ((6, 10), 1)])
def test_update_is_that_of_the_authors(shape, largest):
    """In nine steps with three QR decompositions; sides above `largest` are not rotated."""
    rng = np.random.default_rng(0)
    rate = 0.1
    tx = soap(rate, b1=0.8, b2=0.9, frequency=3, largest=largest, weight_decay=0.02)
    authors = Authors(shape, 0.8, 0.9, 3, largest)
    expected = rng.normal(size=shape)
    params: Any = {"x": jnp.asarray(expected, jnp.float32)}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(9):
        g = rng.normal(size=shape)
        updates, state = update({"x": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        decay = 1 - rate * 0.02 if step else 1.0
        expected = decay * expected - rate * authors.update(g)
        np.testing.assert_allclose(params["x"], expected, atol=2e-5, err_msg=f"step {step}")


def test_first_step_changes_no_matrix(one):
    tx = transformation()
    params = arrays(0)
    updates: Any
    updates, _ = jax.jit(tx.update)(arrays(1), tx.init(params), params)
    for path in SHAPES:
        assert bool(np.any(updates[path])) == (path not in MATRICES), path


def test_side_above_the_largest_has_no_factor():
    params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
    state: Any = scale_by_soap(largest=16, matrices=matrices).init({path: params[path] for path in MATRICES})
    sizes = {path: [getattr(part[path], "shape", None) for part in (state.rows, state.columns)] for path in MATRICES}
    assert sizes == {
        "blocks/down": [None, (4, 16, 16)],
        "blocks/query": [(4, 16, 16), (4, 16, 16)],
        "experts/up": [(2, 2, 16, 16), None],
        "one": [(16, 16), None],
    }


@pytest.mark.parametrize("mesh", MESHES)  # meshes_test.py has those with experts and a pipeline
def test_parameters_are_those_of_one_device_on_meshes(one, split, mesh):
    """Sums in another order differ by the rounding of float32, which Adam amplifies where a moment is small."""
    found = (split if mesh == "fsdp=8" else Run(transformation(), MESHES[mesh])).train(5)
    for path in SHAPES:
        np.testing.assert_allclose(found[path], one[path], rtol=0, atol=1e-4, err_msg=path)


def test_each_device_decomposes_its_share_in_the_steps_that_need_it(split):
    """17 factors of 16 x 16 on 8 devices: at most three on each, in branches that other steps do not run."""
    program = HloText.parse(split.compiled.as_text() or "")
    calls = [(name, i) for _, name, i in program.executed() if i.opcode == "custom-call"]
    assert {re.findall(r"f32\[(\d+,16,16)\]", i.shape)[0] for _, i in calls} == {"3,16,16"}
    assert len(calls) == 3  # eigh, and both parts of QR
    assert program.entry not in {name for name, _ in calls}
    [branches] = [i.callees() for _, _, i in program.executed() if i.opcode == "conditional"]
    assert len(branches) == 3
