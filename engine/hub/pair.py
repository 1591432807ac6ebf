"""Checks imported weights by a pair of inputs and an output of the other program, from an npz file."""

import inspect
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from engine.base.errors import CheckpointError
from engine.hub.matching import variables_of

OUTPUT = "output"
TOLERANCE = 1e-4  # of a difference, relative to the largest number of the output


class Pair:
    """Inputs of a model by argument name, and its output in the other program.

    Args:
        file: npz with an array for each argument of the model, as the model here takes it, and the array `output`.
        where: what names the file, for errors.

    Raises:
        CheckpointError: the file cannot be read, or has no output.
    """

    def __init__(self, file: Path, where: str):
        self._where = f"{where} = {file}"
        try:
            with np.load(file, allow_pickle=False) as found:
                self.inputs = {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise CheckpointError(f"{self._where}: cannot be read ({error}). {_FORM}") from error
        if OUTPUT not in self.inputs:
            raise CheckpointError(f"{self._where}: found the arrays {', '.join(self.inputs)}. {_FORM}")
        self.output = self.inputs.pop(OUTPUT)

    def measure(self, module: nnx.Module) -> Callable[[Mapping[str, jax.Array]], float]:
        """Returns the function from the variables of a module by path to the difference of its output.

        The difference is the largest one, relative to the largest number of the other program's output; infinite for
        numbers that are not finite. The module computes as in an evaluation.

        Raises:
            CheckpointError: the module has no such arguments, or its output is no array of the shape there.
        """
        parameters = inspect.signature(type(module).__call__).parameters
        if unknown := [name for name in self.inputs if name not in parameters]:
            allowed = ", ".join(list(parameters)[1:])
            raise CheckpointError(f"{self._where}: the model has no argument {unknown[0]}. It has: {allowed}. {_FORM}")
        module.eval()
        graph, state = nnx.split(module)

        @jax.jit
        def output(state: nnx.State, values: Mapping[str, jax.Array], inputs: Mapping[str, np.ndarray]) -> jax.Array:
            copy: Any = nnx.merge(graph, state)
            for name, variable in variables_of(copy).items():
                variable.set_value(values[name])
            return copy(**inputs)

        def difference(values: Mapping[str, jax.Array]) -> float:
            found = output(state, values, self.inputs)
            shape = getattr(found, "shape", None)
            if shape != self.output.shape:
                kind = f"an array of shape {list(shape)}" if shape is not None else f"a {type(found).__name__}"
                raise CheckpointError(
                    f"{self._where}: the model returns {kind}, but {OUTPUT} has the shape {list(self.output.shape)}. "
                    f"Give the output of the same part of the model. {_FORM}"
                )
            largest = np.abs(np.asarray(found, np.float64) - self.output).max(initial=0.0)
            scale = np.abs(self.output).max(initial=0.0)
            return float(largest / scale) if np.isfinite(largest) and scale else np.inf if largest else 0.0

        return difference


_FORM = f"It must be an npz file with one array for each argument of the model, and {OUTPUT}."
