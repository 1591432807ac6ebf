"""`load.py`, which loads a bundle without the engine."""

import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.bundles import handmade

pytestmark = pytest.mark.multiprocess

PROGRAM = """
import pathlib, sys
import numpy as np
import load
assert not {"engine", "flax", "safetensors"} & set(sys.modules)
stored = load.arrays(pathlib.Path("samples/predict.safetensors"))
for folder in (".", "../inside"):
    outputs = load.load("predict", folder)({"image": stored["inputs/image"]})
    for name in ("class", "score"):
        np.testing.assert_allclose(np.asarray(outputs[name]), stored[f"outputs/{name}"], rtol=1e-5)
for name, x in sorted(load.arrays(pathlib.Path("../others.safetensors")).items()):
    print(name, x.dtype, x.shape, x.astype(float).sum())
"""


def test_bundle_runs_without_the_engine(tmp_path):
    outside = handmade.write(tmp_path / "outside", onnx=False)
    handmade.write(tmp_path / "inside", onnx=False, holds_weights=True)
    shutil.copy(handmade.STANDALONE / "load.py", outside)
    others = {
        "bf16": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
        "mask": np.array([[True, False]]),
        "scale": np.asarray(np.float16(2)),
        "ids": np.array([1, 2], np.uint8),
    }
    save_file(others, tmp_path / "others.safetensors")
    environment = {"JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=outside, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "bf16 bfloat16 (3,) 3.0",
        "ids uint8 (2,) 3.0",
        "mask bool (1, 2) 1.0",
        "scale float16 () 2.0",
    ]
