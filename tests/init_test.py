"""`import engine` loads no heavy library until a name is used."""

import subprocess
import sys

import pytest

import engine

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "tensorstore", "rich")


def loaded(code: str, folder) -> str:
    code += f"\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import engine",
        "import engine; dir(engine)",
        "import engine; engine.ConvoyError",
        "import engine.config",
        "import engine.config; [getattr(engine.config, name) for name in engine.config.__all__]",
        "import engine.cli.main",
    ],
)
def test_import_loads_no_heavy_library(code, tmp_path):
    assert loaded(code, tmp_path) == ""


def test_importing_main_does_not_load_ml_collections(tmp_path):
    code = "import engine.cli.main, sys; assert 'ml_collections' not in sys.modules"
    assert loaded(code, tmp_path) == ""


@pytest.mark.parametrize("name", engine.__all__)
def test_public_name_matches_its_object(name):
    assert getattr(engine, name).__name__.removeprefix("engine.") == name
    assert name in dir(engine)


def test_import_star_gives_all_public_names():
    names = {}
    exec("from engine import *", names)
    assert set(engine.__all__) <= names.keys()


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'Trainor'"):
        engine.Trainor  # noqa: B018
    with pytest.raises(ImportError, match="Trainor"):
        exec("from engine import Trainor")
