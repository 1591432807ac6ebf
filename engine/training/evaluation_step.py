"""The evaluation step: a jitted function whose programs may be compiled before its first call."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from engine.data.batch import Batch
from engine.metrics.state import Reduced
from engine.training.compiler import Compiler
from engine.training.model import Arrays
from engine.training.state import Weights


class EvaluationStep:
    """Computes the metrics of a batch.

    Args:
        jitted: the function.
        lower: returns its lowered program for abstract weights, and batches of so many rows with a sharding.
        mesh: the devices.
    """

    def __init__(self, jitted: Any, lower: Callable[[Weights, int, NamedSharding], jax.stages.Lowered], mesh: Mesh):
        self._jitted, self._lower, self._mesh = jitted, lower, mesh
        self._compiled: dict[int, jax.stages.Compiled] = {}  # rows of a batch -> its program

    def compile(
        self, name: str, weights: Weights, rows: int, sharding: NamedSharding, compiler: Compiler
    ) -> jax.stages.Compiled:
        """Compiles the program for batches of so many rows, which later calls use, and returns it.

        Args:
            name: name of the program, for messages.
            weights: the weights that the calls pass, as jax.ShapeDtypeStruct with shardings.
            rows: rows of a global batch.
            sharding: of the rows.
            compiler: compiles the program, or loads it.
        """
        self._compiled[rows] = compiler.compile(name, self._lower(weights, rows, sharding), self._mesh)
        return self._compiled[rows]

    def __call__(
        self,
        params: Arrays,
        model_state: Arrays,
        batch: Batch,
        point: np.ndarray,
        members: Mapping[str, jax.Array] | None,
    ) -> Reduced:
        arguments = params, model_state, batch, point, members
        if (compiled := self._compiled.get(len(batch.weight))) is not None:
            try:
                return compiled(*arguments)
            except (TypeError, ValueError):  # JAX checks before it runs: the state of a hook may hold other arrays
                pass
        return self._jitted(*arguments)
