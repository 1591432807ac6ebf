"""The compiler of a run without a folder of compiled programs."""

import jax
import numpy as np
from jax.sharding import Mesh

from engine.compile.compiler import ProgramCompiler


def test_program_is_compiled():
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    assert ProgramCompiler().compile("step", lowered, Mesh(np.array(jax.devices()[:1]), "x"))(3.0) == 6
