"""Compiles the programs of a run. Few runs load them from a folder instead (`program_store.py`)."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from engine.compile.options import Value
from engine.storage.mounts import local_text


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


def open_compiler(programs: str | None, config: str, say: Callable[[str], None]) -> ProgramCompiler:
    """Returns the compiler of a run, which loads the programs of `cache.programs`.

    Args:
        programs: the folder; None: every program is compiled.
        config: text of the config of the run.
        say: called with sentences for the user.

    Raises:
        ConfigError: `cache.programs` is not a folder, or other users may write to it.
    """
    if programs is None:
        return ProgramCompiler(say)
    from engine.compile.program_store import StoredPrograms

    return StoredPrograms(Path(local_text(programs)), config=config, say=say)
