"""Every verb of the table answers --help, and every module with a verb is in the table."""

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
    assert all(verb.module is getattr(verbs, name) for name, verb in VERBS.items())
