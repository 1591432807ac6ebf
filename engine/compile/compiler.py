"""Compiles the programs of a run. Few runs load them from a folder instead (`program_store.py`)."""

from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from engine.compile.options import Value


class ProgramCompiler:
    """Compiles programs. Several threads may use it.

    Args:
        say: called with sentences for the user.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.say = say

    def compile(
        self, name: str, lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping[str, Value] | None = None
    ) -> jax.stages.Compiled:
        """Returns a compiled program.

        Args:
            name: name of the program, such as "step", for messages and files.
            lowered: the program.
            mesh: its devices.
            options: the `compiler_options` of its `jax.jit`, which StableHLO does not hold.
        """
        return lowered.compile()
