import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Task
from engine.compile.program import Program
from engine.compile.shapes import ByShape
from engine.data.batch import Batch
from engine.parallel.memory import compiled_bytes
from tests import zoo


def batch(rows, length):
    return Batch({"x": np.zeros((rows, length))}, np.ones(rows))


@dataclasses.dataclass
class Named:
    """A program that returns its name and its arguments."""

    name: str

    def __call__(self, *args) -> Any:
        return self.name, *args

    def as_text(self):
        return f"text of {self.name}"

    @property
    def device_bytes(self):
        return len(self.name)


def test_call_runs_the_program_for_the_shape_of_its_batches():
    programs = ByShape([batch(2, 3), batch(2, 5)], [Named("short"), Named("longer")])
    assert programs(7, (batch(2, 5),), "mask")[:2] == ("longer", 7)
    assert programs(7, (batch(2, 3), batch(2, 3)), "mask")[0] == "short"
    with pytest.raises(KeyError):
        programs(7, (batch(2, 4),), "mask")
    assert (programs.as_text(), programs.device_bytes) == ("text of longer", 6)


class Total(Task):
    """A linear model of each element of a set of any size."""

    def build(self, rngs):
        return nnx.Linear(1, 4, rngs=rngs)

    def loss(self, model, batch, rng):
        return Loss.of((model(batch["x"][..., None]) ** 2).mean((1, 2)))


def test_program_of_two_shapes_trains_on_both_and_counts_their_flops():
    small, large = ({"x": jax.ShapeDtypeStruct((size,), np.float32)} for size in (4, 8))
    alone = zoo.program(Total(), example=small)
    program = Program(alone.spec, large, batch_size=16, seed=0, shapes=[small, large])
    short, long = ({"x": np.ones((16, size), np.float32)} for size in (4, 8))
    _, metrics = zoo.run(program, [short, long, short])
    assert program.steps(1).device_bytes == compiled_bytes(program.trace(1).lower().compile())
    assert zoo.losses(metrics)[0] == zoo.losses(zoo.run(alone, [short])[1])[0]
    assert np.isfinite(zoo.losses(metrics)).all()
    program.shape_shares = (1.0, 0.0)
    assert program.flops_per_step == alone.flops_per_step > 0
    program.shape_shares = (0.5, 0.5)
    assert program.flops_per_step == 1.5 * alone.flops_per_step
