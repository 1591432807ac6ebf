"""The resolved text of every config, so that a diff shows the effect of a changed config or default.

To accept a change: CONVOY_UPDATE_GOLDENS=1 python -m pytest tests/configs/golden_test.py
"""

import difflib
import os
import pathlib

import pytest

from engine.compile.build import build_task
from engine.config import load, to_text

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
UPDATE = "CONVOY_UPDATE_GOLDENS"
SHARED = {"__init__", "base"}  # imported by configs; not configs themselves
CONFIGS = sorted(file.stem for file in (ROOT / "configs").glob("*.py") if file.stem not in SHARED)


def test_every_golden_text_has_a_config():
    assert CONFIGS
    assert {file.stem for file in GOLDEN.glob("*.txt")} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_matches_its_golden_text(name):
    golden, text = GOLDEN / f"{name}.txt", to_text(load(f"configs.{name}"))
    if os.environ.get(UPDATE) == "1":
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    command = f"{UPDATE}=1 python -m pytest {pathlib.Path(__file__).relative_to(ROOT)}"
    assert golden.is_file(), f"configs/{name}.py has no golden text. To create it: {command}"
    wanted = golden.read_text(encoding="utf-8")
    lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), "golden", "now", n=0, lineterm="")
    assert text == wanted, (
        f"configs/{name}.py differs from its golden text. To accept the change: {command}\n" + "\n".join(lines)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_task_of_each_config_has_the_methods_that_the_engine_calls(name):
    assert build_task(load(f"configs.{name}").task)
