"""Keeps the compiled programs of all processes of a job but the first, for the next job of the tests.

JAX's compilation cache serves process 0 only: on CPUs its key of a program differs by process, and no other process
writes to it. So each start of a job compiled everything again in its other processes, half of the CPU time of the job.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from engine.base.files import read_checked, write_checked
from engine.compile import cache
from engine.compile.compiler import ProgramCompiler
from engine.compile.key import describe_program
from engine.compile.options import Value
from engine.compile.program import Program
from engine.parallel import digest

loaded: list[str] = []
"""Names of the programs that this process has loaded."""


def install() -> None:
    """Makes a process of a job load and store its programs below JAX's cache, unless JAX's cache serves it."""
    index, folder = os.environ.get("CONVOY_PROCESS_ID", "0"), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if index == "0" or not folder or os.environ.get("JAX_PLATFORMS") != "cpu":
        return
    compile_anew, digest_row = ProgramCompiler.compile, digest._row

    def compile_once(
        self: ProgramCompiler,
        name: str,
        lowered: jax.stages.Lowered,
        mesh: Mesh,
        options: Mapping[str, Value] | None = None,
    ) -> jax.stages.Compiled:
        facts = [index, describe_program(lowered, mesh, options or {})]
        path = Path(folder) / "processes" / hashlib.sha256(repr(facts).encode()).hexdigest()
        if path.exists():
            devices, trees = list(mesh.devices.flat), (lowered.in_tree, lowered.out_tree)
            found = serialize_executable.deserialize_and_load(read_checked(path), *trees, devices[0].client, devices)
            loaded.append(name)
            return found
        with cache.disabled():  # JAX cannot serialize a program that it has loaded
            compiled = compile_anew(self, name, lowered, mesh, options)
        path.parent.mkdir(exist_ok=True)
        write_checked(path, serialize_executable.serialize(compiled)[0])
        return compiled

    known: dict[Hashable, jax.stages.Compiled] = {}

    def call(key: Hashable, name: str, lower: Callable[[], jax.stages.Lowered], mesh: Mesh, array: Any) -> Any:
        """Calls a program that the engine compiles at its first call."""
        if key not in known:
            known[key] = compile_once(ProgramCompiler(), name, lower(), mesh)
        return known[key](array)

    class Row:
        """The digest of an array."""

        lower = digest_row.lower

        def __call__(self, x: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
            mesh = sharding.mesh
            assert isinstance(mesh, Mesh)
            key = (x.shape, x.dtype, x.sharding, sharding)
            return call(key, "digest", lambda: digest_row.lower(x, sharding), mesh, x)

    def not_finite(self: Program, state: Any) -> list[str]:
        found = call(id(self), "check", lambda: self._are_finite.lower(state), self.mesh, state)
        return [path for path, finite in found.items() if not finite]

    ProgramCompiler.compile = compile_once  # pyright: ignore[reportAttributeAccessIssue]
    digest._row = Row()  # pyright: ignore[reportAttributeAccessIssue]
    Program.not_finite = not_finite  # pyright: ignore[reportAttributeAccessIssue]
