""".ci/count.py: adds up the reports of the runs, and a run that is incomplete counts as failed."""

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(".ci/count.py").resolve()


GOOD = '<testcase name="a"/>'
BAD = '<testcase classname="tests.x" name="b"><failure message="no"/></testcase>'
SKIPPED = '<testcase name="c"><skipped/></testcase>'


def run(folder, targets: dict[str, str | None], code=0) -> list[str]:
    """Writes the build events of a run of these targets, whose values are the test cases of their test.xml."""
    folder.mkdir()
    events = []
    for label, cases in targets.items():
        events.append({"id": {"targetConfigured": {"label": label}}, "configured": {"targetKind": "py_test rule"}})
        if cases is not None:
            report = folder / (label.split(":")[-1] + ".xml")
            report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
            result = {"testActionOutput": [{"name": "test.xml", "uri": report.as_uri()}]}
            events.append({"id": {"testResult": {"label": label, "run": 1, "shard": 1}}, "testResult": result})
    path = folder / "events.json"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return ["--run", folder.name, str(code), str(path)]


def count(*arguments: list[str]) -> tuple[list[str], int]:
    """Returns the lines that count.py prints, and its exit code."""
    command = [sys.executable, SCRIPT, *(word for words in arguments for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines(), done.returncode


def test_sums_all_reports(tmp_path):
    assert count(run(tmp_path / "tests", {"//a:x": GOOD + GOOD, "//a:y": GOOD})) == (["3 passed, 0 failed"], 0)


def test_skipped_tests_are_counted_and_are_no_failure(tmp_path):
    tests = run(tmp_path / "tests", {"//a:x": GOOD + SKIPPED})
    assert count(tests) == (["1 passed, 0 failed, 1 skipped"], 0)


def test_failed_test_fails_the_whole(tmp_path):
    tests = run(tmp_path / "tests", {"//a:x": GOOD + BAD}, code=3)
    assert count(tests) == (["FAILED (tests) //a:x tests.x.b", "1 passed, 1 failed"], 1)


def test_target_without_report_counts_as_failed(tmp_path):
    lines, code = count(run(tmp_path / "tests", {"//a:x": GOOD, "//a:y": None, "//a:z": None}, code=1))
    assert (lines[0], lines[-1], code) == ("FAILED (tests) //a:y did not run", "1 passed, 2 failed", 1)


def test_exit_code_of_bazel_counts_as_failed(tmp_path):
    tests = run(tmp_path / "tests", {"//a:x": GOOD}, code=37)
    assert count(tests) == (["FAILED (tests) bazel test ended with 37", "1 passed, 1 failed"], 1)


def test_run_without_tests_counts_as_failed(tmp_path):
    assert count(run(tmp_path / "tests", {})) == (["FAILED (tests) no test ran", "0 passed, 1 failed"], 1)


def test_failed_lint_counts_as_failed(tmp_path):
    lint = ["--extra-failures", "1"]
    assert count(run(tmp_path / "tests", {"//a:x": GOOD}), lint) == (["1 passed, 1 failed"], 1)


def test_two_runs_are_summed_and_each_must_be_complete(tmp_path):
    tests = run(tmp_path / "tests", {"//a:x": GOOD + SKIPPED})
    lowest = run(tmp_path / "lowest", {"//a:x": GOOD})
    assert count(tests, lowest) == (["2 passed, 0 failed, 1 skipped"], 0)
    empty = run(tmp_path / "empty", {}, code=4)
    assert count(tests, empty) == (["FAILED (empty) no test ran", "1 passed, 1 failed, 1 skipped"], 1)


def test_run_whose_events_were_not_written_counts_as_failed(tmp_path):
    tests = run(tmp_path / "tests", {"//a:x": GOOD})
    missing = ["--run", "lowest", "1", str(tmp_path / "nothing.json")]
    assert count(tests, missing) == (["FAILED (lowest) no test ran", "1 passed, 1 failed"], 1)
