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
    assert found["notes"][0] == f"{run} is given twice." and len(found["notes"]) == 2


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
    assert main(["compare", str(digits[0]), f"--html={tmp_path / 'b.html'}", f"--gate={gate(tmp_path, FINE)}"]) == 1
    assert "--html: found one run." in capsys.readouterr().err
    assert main(["compare", str(digits[0]), str(digits[0]), "--html=."]) == 1
    assert "--html = .: found the ending ''. Allowed: NAME.html." in capsys.readouterr().err


def gate(folder, text: str) -> str:
    (folder / "gate.toml").write_text(text)
    return str(folder / "gate.toml")


FINE = '[rules.fine]\nmetric = "heldout/accuracy"\nat_least = 0\n'
EQUAL = '[rules.equal]\nmetric = "heldout/loss"\nmax_worse = 0\nfail_if = "measured_worse"\n'
NEVER = '[rules.never]\nmetric = "heldout/loss"\nat_most = -1\n'


def test_gate_ends_with_code_0_if_it_passes_and_1_if_a_rule_fails(digits, tmp_path, capsys):
    run, file = str(digits[0]), str(tmp_path / "gate.md")
    assert main(["compare", run, run, f"--gate={gate(tmp_path, FINE + EQUAL)}", f"--markdown={file}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("settings: the same") and printed.endswith("gate passed: all 2 rules are kept\n")
    assert (tmp_path / "gate.md").read_text().startswith("**PASSED** ")
    assert main(["compare", run, run, f"--gate={gate(tmp_path, FINE + NEVER)}", f"--markdown={file}"]) == 1
    assert capsys.readouterr().out.endswith("gate FAILED: 1 of 2 rules failed\n")
    assert (tmp_path / "gate.md").read_text().startswith("**FAILED** ")


def test_gate_judges_a_run_alone(digits, tmp_path, capsys):
    run = str(digits[0])
    assert main(["compare", run, f"--gate={gate(tmp_path, FINE)}"]) == 0
    assert capsys.readouterr().out.startswith("PASS  fine: heldout/accuracy; at least 0")
    assert main(["compare", run, f"--gate={gate(tmp_path, NEVER)}", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["gate"]["rules"][0]["verdict"] == "fail"
    assert main(["compare", run, f"--gate={gate(tmp_path, EQUAL)}"]) == 1
    assert "rules.equal: max_worse compares with a base, and there is none" in capsys.readouterr().err


def test_gate_that_cannot_be_judged_leaves_no_verdict_of_an_earlier_one(digits, tmp_path, capsys):
    run, file = str(digits[0]), tmp_path / "gate.md"
    file.write_text("**PASSED** of yesterday")
    wrong = gate(tmp_path, FINE.replace("accuracy", "acuracy"))
    assert main(["compare", run, f"--gate={wrong}", f"--markdown={file}"]) == 1
    assert "metric: 'acuracy' matches nothing" in capsys.readouterr().err
    assert file.read_text().startswith("**NO VERDICT** RunError: ") and "Did you mean accuracy?" in file.read_text()
    assert main(["compare", f"{run}/none", run, f"--gate={wrong}", f"--markdown={file}"]) == 1
    assert "none: is not a run directory" in file.read_text()


def test_flags_of_a_gate_are_checked(digits, tmp_path, capsys):
    run, file = str(digits[0]), gate(tmp_path, FINE)
    assert main(["compare", run]) == 1
    assert "compare: found one run. Give two or more, or one and --gate=FILE." in capsys.readouterr().err
    assert main(["compare", run, run, "--markdown=x.md"]) == 1
    assert "--markdown: writes the verdicts of a gate. Add --gate=FILE." in capsys.readouterr().err
    assert main(["compare", run, f"--gate={file}", f"--markdown={tmp_path}/none/x.md"]) == 1
    assert "x.md: cannot be written (No such file" in capsys.readouterr().err
