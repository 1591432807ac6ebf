"""`convoy compare`: a table or JSON; tests of the comparison are in tests/experiments."""

import json

from engine.cli.main import main


def test_run_compared_with_itself_differs_in_nothing(digits, capsys):
    run = str(digits[0])
    assert main(["compare", run, run]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("settings: the same")
    assert "heldout/accuracy" in printed and "+0" in printed
    assert "convoy evaluate RUN --evaluations.heldout.per_example=True" in printed


def test_json_has_settings_results_and_notes(digits, capsys):
    run = str(digits[0])
    assert main(["compare", run, run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {} and {result["metric"] for result in found["results"]} == {"accuracy", "loss"}
    assert len(found["notes"]) == 1


def test_number_of_resamples_is_checked(digits, capsys):
    assert main(["compare", str(digits[0]), str(digits[0]), "--resamples=5"]) == 1
    assert "--resamples = 5: allowed are 100 to 1,000,000" in capsys.readouterr().err
