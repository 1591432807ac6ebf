"""The compiler of a run, with and without a folder of compiled programs."""

import jax
import numpy as np
from jax.sharding import Mesh

from engine.compile.compiler import ProgramCompiler, open_compiler
from engine.compile.program_store import StoredPrograms


def test_run_without_a_folder_compiles_every_program():
    compiler = open_compiler(None, "", print)
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    assert compiler.compile("step", lowered, Mesh(np.array(jax.devices()[:1]), "x"))(3.0) == 6
    assert type(compiler) is ProgramCompiler


def test_run_with_a_folder_loads_programs_from_it(tmp_path):
    assert isinstance(open_compiler(str(tmp_path), "", print), StoredPrograms)
