"""Importing `engine.config` loads no heavy library, so errors in a config are reported quickly."""

import resource
import subprocess
import sys

import engine.config

HEAVY = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax", "grain", "rich", "tensorstore")


def run(code, folder):
    """Returns the ended process and its seconds of CPU time, which other programs do not change."""
    before = cpu_seconds()
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=180)
    return result, cpu_seconds() - before


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_importing_config_loads_no_heavy_library(tmp_path):
    code = f"import sys, engine.config, engine.cluster.exit_status\nprint([m for m in {HEAVY} if m in sys.modules])"
    result, _ = run(code, tmp_path)
    assert result.stdout == "[]\n", result.stderr


def test_unknown_field_in_a_file_is_reported_in_under_a_second(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from engine.config import defaults\ndef get_config():\n    c = defaults()\n    c.train.totl = 1\n"
    )
    code = """
import sys
from engine.config import ConfigError, load
try:
    load("mine.py")
except ConfigError as error:
    sys.exit(str(error))
"""
    result, seconds = min((run(code, tmp_path) for _ in range(3)), key=lambda pair: pair[1])
    assert result.returncode == 1
    assert result.stderr.startswith("train.totl: unknown field (mine.py:4). Did you mean train.total?")
    assert seconds < 1.0


def test_public_names_exist():
    assert all(hasattr(engine.config, name) for name in engine.config.__all__)
