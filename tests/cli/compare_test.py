"""`convoy compare`: a table or JSON; tests of the comparison are in tests/experiments."""

import json

from engine.cli.main import main


def test_run_compared_with_itself_differs_in_nothing(digits, capsys):
    run = str(digits[0])
    assert main(["compare", run, run]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("settings: the same")
    assert "heldout/accuracy" in printed and "+0" in printed
    assert f"convoy evaluate {run} --evaluations.heldout.per_example=True" in printed


def test_json_has_settings_results_and_notes(digits, capsys):
    run = str(digits[0])
    assert main(["compare", run, run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {} and {result["metric"] for result in found["results"]} == {"accuracy", "loss"}
    assert len(found["notes"]) == 1


def test_number_of_resamples_is_checked(digits, capsys):
    assert main(["compare", str(digits[0]), str(digits[0]), "--resamples=5"]) == 1
    assert "--resamples = 5: allowed are 100 to 1,000,000" in capsys.readouterr().err


def test_tag_that_no_evaluation_has_is_an_error(digits, capsys):
    assert main(["compare", str(digits[0]), str(digits[0]), "--group=scene"]) == 1
    assert "--group=scene: no evaluation has this tag" in capsys.readouterr().err


def test_number_of_examples_is_checked(digits, capsys):
    assert main(["compare", str(digits[0]), str(digits[0]), "--examples=-1"]) == 1
    assert "--examples = -1: allowed is a whole number from 0" in capsys.readouterr().err


def test_page_is_written_with_the_comparison(digits, tmp_path, capsys):
    assert main(["compare", str(digits[0]), str(digits[0]), f"--html={tmp_path / 'a.html'}"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.html'}\n"
    assert '"focus": "comparison"' in (tmp_path / "a.html").read_text()
    assert main(["compare", str(digits[0]), str(digits[0]), "--html=a.html", "--json"]) == 1
