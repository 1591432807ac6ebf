"""`convoy runs`: a table or JSON lines; tests of its parts are in tests/experiments."""

import json

from engine.cli.arguments import make_parser
from engine.cli.main import main
from engine.cli.verbs import VERBS


def test_runs_below_a_folder_are_listed(digits, capsys):
    folder = digits[0].parent
    assert main(["runs", str(folder)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "state", "step", "age"]
    assert line.split()[:3] == ["run", "done", "3/3"]


def test_json_has_every_setting_and_metric_of_the_selected_runs(digits, capsys):
    folder = str(digits[0].parent)
    assert main(["runs", folder, "--json", "--where=step = 3", "--sort=-loss"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["config"]["task.width"] == 128 and found["metrics"]["heldout/accuracy"] >= 0
    assert main(["runs", folder, "--where=step > 3"]) == 0
    assert "None of the 1 runs" in capsys.readouterr().out


def test_folder_without_runs_says_where_runs_are(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "No runs below" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_actions_of_the_table_are_those_of_the_parser_and_the_first_may_be_left_out(digits, tmp_path, capsys):
    [actions] = [
        found.choices for found in make_parser(["runs"])[1]["runs"]._actions if isinstance(found.choices, dict)
    ]
    assert tuple(actions) == VERBS["runs"].actions
    folder = str(digits[0].parent)
    assert main(["runs", "--json", folder]) == main(["runs", "list", "--json", folder]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["runs", str(tmp_path / "list"), "--sorted"]) == 1
    assert "--sorted: unknown argument of convoy runs list." in capsys.readouterr().err
