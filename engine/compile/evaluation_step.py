"""A step of an evaluation: a jitted function of weights and a batch, whose programs may be compiled before a call."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from engine.compile.compiler import ProgramCompiler
from engine.compile.shapes import shapes_of
from engine.data.batch import Batch
from engine.training.arrays import Arrays
from engine.training.state import Weights

ARGUMENTS = ("params", "model_state", "batch", "point", "members")
"""Names of the arguments of a step, for messages; a step of predictions has the first three."""


class EvaluationStep[Result]:
    """Computes the metrics or the predictions of a batch.

    Args:
        jitted: the function of ARGUMENTS.
        lower: returns its lowered program for abstract weights and an abstract batch.
        mesh: the devices.
    """

    def __init__(self, jitted: Any, lower: Callable[[Weights, Batch], jax.stages.Lowered], mesh: Mesh):
        self._jitted, self._lower, self._mesh = jitted, lower, mesh
        self._compiled: dict[tuple[tuple[int, ...], ...], jax.stages.Compiled] = {}  # shapes of a batch -> its program
        self._name, self._say, self._reported = "", ProgramCompiler().say, False

    def compile(self, name: str, weights: Weights, batch: Batch, compiler: ProgramCompiler) -> jax.stages.Compiled:
        """Compiles the program for batches of these shapes, which later calls use, and returns it.

        Args:
            name: name of the program, for messages.
            weights: the weights that the calls pass, as jax.ShapeDtypeStruct with shardings.
            batch: a batch that the calls pass, likewise.
            compiler: compiles the program, or loads it.
        """
        compiled = compiler.compile(name, self._lower(weights, batch), self._mesh)
        self._compiled[shapes_of(batch)] = compiled
        self._name, self._say = self._name or name, compiler.say
        return compiled

    def __call__(self, params: Arrays, model_state: Arrays, batch: Batch, *more: Any) -> Result:
        """Runs the program that was compiled for the arrays; compiles another one for others.

        It warns once if arrays of the same shapes of the batch differ.
        """
        arguments = params, model_state, batch, *more
        if (compiled := self._compiled.get(shapes_of(batch))) is not None:
            try:
                return compiled(*arguments)
            except (TypeError, ValueError):  # JAX checks before it runs: the state of a hook may hold other arrays
                if not (difference := first_difference(compiled, arguments)):
                    raise
                self._report(difference)
        return self._jitted(*arguments)

    def _report(self, difference: str) -> None:
        if not self._reported:
            self._reported = True
            self._say(
                f"warning: {self._name}: another program is compiled, since its arrays are not those for which it was "
                f"compiled ahead: {difference}."
            )


def first_difference(compiled: jax.stages.Compiled, arguments: tuple[Any, ...]) -> str:
    """Returns how the first argument that differs from those of a program differs; "" if none does."""
    expected, shardings = compiled.args_info[0], compiled.input_shardings[0]
    wanted = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(expected)}
    placed = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(shardings)}  # without unused arguments
    found = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(arguments)}
    for name in {**wanted, **found}:
        if name not in wanted or name not in found:
            return f"{name} {'is new' if name in found else 'is missing'}"
        here, there = _form(found[name]), _form(wanted[name])
        if here != there:
            return f"{name} is {here}, not {there}"
        sharding = found[name].sharding if isinstance(found[name], jax.Array) and name in placed else None
        if sharding is not None and not sharding.is_equivalent_to(placed[name], found[name].ndim):
            return f"{name} is split as {_spec(sharding)}, not as {_spec(placed[name])}"
    return ""


def _path(path: tuple[Any, ...]) -> str:
    """Returns the name of an array, such as "params/head/kernel"."""
    first, *rest = path
    return "/".join(filter(None, (ARGUMENTS[first.idx], jax.tree_util.keystr(tuple(rest), simple=True, separator="/"))))


def _form(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _spec(sharding: jax.sharding.Sharding) -> str:
    return str(tuple(sharding.spec)) if isinstance(sharding, NamedSharding) else str(sharding)
