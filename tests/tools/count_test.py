""".ci/count.py: adds up the reports of one run, and never calls a run good that was not."""

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(".ci/count.py").resolve()


def count(tmp_path, reports: dict[str, str | None], code=0, extra=0):
    """Counts the run of the targets in reports, whose values are the test cases of their test.xml."""
    events = []
    for label, cases in reports.items():
        events.append({"id": {"targetConfigured": {"label": label}}, "configured": {"targetKind": "py_test rule"}})
        if cases is not None:
            report = tmp_path / (label.split(":")[-1] + ".xml")
            report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
            result = {"testActionOutput": [{"name": "test.xml", "uri": report.as_uri()}]}
            events.append({"id": {"testResult": {"label": label, "run": 1, "shard": 1}}, "testResult": result})
    path = tmp_path / "events.json"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    command = [sys.executable, SCRIPT, f"--events={path}", f"--code={code}", f"--extra-failures={extra}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1], done.returncode


GOOD = '<testcase name="a"/>'
BAD = '<testcase name="b"><failure message="no"/></testcase>'
SKIPPED = '<testcase name="c"><skipped/></testcase>'


def test_it_adds_up_all_reports(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD + GOOD, "//a:y": GOOD}) == ("3 passed, 0 failed", 0)


def test_skipped_tests_are_told_but_are_no_failure(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD + SKIPPED}) == ("1 passed, 0 failed, 1 skipped", 0)


def test_a_failure_fails_the_run(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD + BAD}, code=3) == ("1 passed, 1 failed", 1)


def test_a_target_without_a_report_counts_as_failed(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD, "//a:y": None, "//a:z": None}, code=1) == ("1 passed, 2 failed", 1)


def test_a_run_that_bazel_calls_failed_is_not_good(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD}, code=37) == ("1 passed, 1 failed", 1)


def test_no_test_at_all_is_not_good(tmp_path):
    assert count(tmp_path, {}) == ("0 passed, 0 failed", 1)


def test_a_failed_lint_counts(tmp_path):
    assert count(tmp_path, {"//a:x": GOOD}, extra=1) == ("1 passed, 1 failed", 1)
