"""Every verb of the table answers --help, and every module with a verb is in the table."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import verbs
from engine.cli.main import main
from engine.cli.verbs import VERBS


@pytest.mark.parametrize("name", VERBS)
def test_verb_prints_its_help(name, capsys):
    assert main([name, "--help"]) == 0
    expected = "All settings of a run." if name == "config" else f"usage: convoy {name} "
    assert capsys.readouterr().out.startswith(expected)


def test_every_module_that_runs_a_verb_is_in_the_table():
    folder = Path(verbs.__file__).parent
    written = {path.stem for path in folder.glob("*.py") if "\ndef add_arguments(" in path.read_text()}
    assert written == set(VERBS)
    assert all(verb.module.__name__ == f"engine.cli.{name}" for name, verb in VERBS.items())  # pyright: ignore


def test_command_line_imports_the_module_of_its_verb_only():
    program = "import sys; from engine.cli.main import main; main(['goodput', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {f"engine.cli.{name}" for name in VERBS} & set(done.stdout.split())
    assert imported == {"engine.cli.goodput"}
