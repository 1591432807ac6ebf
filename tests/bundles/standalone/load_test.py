"""`load.py`, which loads a bundle without the engine."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine.bundles.export import export_bundle
from engine.bundles.options import Options
from tests import zoo
from tests.bundles import subjects

pytestmark = pytest.mark.multiprocess

PROGRAM = """
import pathlib, sys
import numpy as np
import load
assert not {"engine", "flax", "safetensors"} & set(sys.modules)
stored = load.arrays(pathlib.Path("samples/predict.safetensors"))
for folder in ("outside", "inside"):
    outputs = load.load("predict", f"../{folder}")({"x": stored["inputs/x"]})
    for name in ("class", "scores/all"):
        np.testing.assert_allclose(np.asarray(outputs[name], np.float32), stored[f"outputs/{name}"].astype(np.float32))
print(stored["outputs/scores/all"].dtype)
"""


def test_bundle_runs_without_the_engine(tmp_path):
    run = subjects.reader_run("bfloat16")
    for name, inside in (("outside", False), ("inside", True)):
        export_bundle(run, tmp_path / name, options=Options(holds_weights=inside, platforms=("cpu",)))
    environment = {"JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path / "outside", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "bfloat16\n" and len(zoo.examples(1)) == 3 and np.__version__
