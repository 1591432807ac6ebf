"""`convoy runs`: a table or JSON lines; tests of its parts are in tests/experiments."""

import json

import pytest

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


def test_lineage_is_printed_as_a_tree_or_as_json(digits, capsys):
    assert main(["runs", "lineage", str(digits[0])]) == 0
    tree = capsys.readouterr().out.splitlines()
    assert tree[0].startswith(f"run {digits[0].name} (state done at 3/3") and tree[1] == "came from"
    assert main(["runs", "lineage", str(digits[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subject"]["kind"] == "run"


def test_exit_code_of_saw_says_whether_it_is_certain_that_nothing_did(digits, tmp_path, capsys):
    assert main(["runs", "lineage", "--saw=scene 7", str(digits[0].parent)]) == 1
    assert "cannot tell:" in (out := capsys.readouterr().out) and digits[0].name in out
    assert main(["runs", "lineage", "--saw=scene 7", "--json", f"--below={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out)["clear"] is True


def test_lineage_without_a_thing_or_with_two_folders_is_refused(tmp_path, capsys):
    for words in (["lineage"], ["lineage", "--saw="], ["lineage", "--saw=a", str(tmp_path), f"--below={tmp_path}"]):
        assert main(["runs", *words]) == 1
        assert "Error" in (error := capsys.readouterr().err) and "Traceback" not in error
    assert main(["runs", "lineage", str(tmp_path)]) == 1
    assert "is no run and has no record of lineage" in capsys.readouterr().err


BUCKET = "gs://bucket/x"


@pytest.mark.parametrize(
    "words",
    [
        ["runs", BUCKET],
        ["runs", "lineage", BUCKET],
        ["runs", "lineage", "--saw=a", BUCKET],
        ["report", "RUN", f"--out={BUCKET}.html"],
        ["compare", "RUN", "RUN", f"--html={BUCKET}.html"],
    ],
)
def test_address_is_a_bucket_and_not_a_local_folder(words, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert main([str(digits[0]) if word == "RUN" else word for word in words]) == 1
    assert "gs://bucket: gcsfuse, which mounts such buckets, is not installed" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
