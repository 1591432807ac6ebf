"""The package is imported by `convoy init` alone, without JAX."""

import subprocess
import sys

from tests import runs
from tests.levels import TOP

PROGRAM = """
import sys
from engine.cli.main import main
assert main(["init", "mine", "--kind=table"]) == 0
print(sorted({"jax", "numpy", "rich"} & set(sys.modules)))
"""


def test_init_imports_no_heavy_library(tmp_path):
    words, environment = [sys.executable, "-c", PROGRAM], runs.environment(PYTHONPATH=str(TOP))
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert "convoy plot runs/mine" in done.stdout
