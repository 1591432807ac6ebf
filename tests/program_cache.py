"""Keeps the compiled programs of all processes of a job but the first, for the next job of the tests.

JAX's compilation cache serves process 0 only: on CPUs its key of a program differs by process, and no other process
writes to it. So each start of a job compiled everything again in its other processes, half of the CPU time of the job.
"""

import hashlib
import os
import weakref
from collections.abc import Mapping
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

loaded: list[str] = []
"""Names of the programs that this process has loaded."""


def install() -> None:
    """Makes a process of a job load and store its programs below JAX's cache, unless JAX's cache serves it."""
    index, folder = os.environ.get("CONVOY_PROCESS_ID", "0"), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if index == "0" or not folder or os.environ.get("JAX_PLATFORMS") != "cpu":
        return
    compile_anew = ProgramCompiler.compile

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

    checks = weakref.WeakKeyDictionary[Program, jax.stages.Compiled]()  # JAX would compile them when they are called

    def not_finite(self: Program, state: Any) -> list[str]:
        if self not in checks:
            checks[self] = compile_once(ProgramCompiler(), "check", self._are_finite.lower(state), self.mesh)
        return [path for path, finite in checks[self](state).items() if not finite]

    ProgramCompiler.compile = compile_once  # pyright: ignore[reportAttributeAccessIssue]
    Program.not_finite = not_finite  # pyright: ignore[reportAttributeAccessIssue]
