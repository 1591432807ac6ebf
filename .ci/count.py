"""Adds up the test.xml files of `bazel test` and prints `N passed, N failed` as the last line.

Bazel's own summary counts targets, not tests. The build events name the reports of each run. Exits with 1 if a test
failed, if a target wrote no report, or if a run ran no test.
"""

import argparse
import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


def reports(events: str) -> tuple[dict[tuple, str], set[str]]:
    """Returns the path of the last test.xml for each (target, run, shard), and the targets without one."""
    found: dict[tuple, str] = {}
    wanted: set[str] = set()
    file = pathlib.Path(events)
    for line in file.read_text().splitlines() if file.exists() else []:  # Bazel may fail before it writes any
        event = json.loads(line)
        label = event["id"].get("targetConfigured", {}).get("label")
        if label and "_test rule" in event.get("configured", {}).get("targetKind", ""):
            wanted.add(label)
        if "testResult" not in event["id"] or "testResult" not in event:
            continue
        key = event["id"]["testResult"]
        for output in event["testResult"].get("testActionOutput", []):
            if output["name"] == "test.xml":
                path = urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
                found[key["label"], key.get("run"), key.get("shard")] = path
    return found, wanted - {key[0] for key in found}


def main() -> int:
    """Prints the failed tests and the sum, and returns the exit code of the whole."""
    parser = argparse.ArgumentParser()
    help_text = "a name for the log, the exit code of bazel test, and the file of its build events"
    parser.add_argument(
        "--run", nargs=3, action="append", required=True, metavar=("NAME", "CODE", "EVENTS"), help=help_text
    )
    parser.add_argument("--extra-failures", type=int, default=0)
    args = parser.parse_args()

    passed = skipped = 0
    failed = args.extra_failures
    for name, code, events in args.run:
        found, without = reports(events)
        outcomes = [(label, case) for (label, *_), path in sorted(found.items(), key=str) for case in cases(path)]
        failures = [
            f"{label} {case.get('classname', '')}.{case.get('name')}"
            for label, case in outcomes
            if outcome(case) == "failed"
        ]
        failures += [f"{label} did not run" for label in sorted(without)]
        if not failures and not outcomes:
            failures = ["no test ran"]
        if not failures and code != "0":
            failures = [f"bazel test ended with {code}"]
        for failure in failures:
            print(f"FAILED ({name}) {failure}")
        failed += len(failures)
        passed += sum(outcome(case) == "passed" for _, case in outcomes)
        skipped += sum(outcome(case) == "skipped" for _, case in outcomes)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0 if passed and not failed else 1


def cases(path: str) -> list[ElementTree.Element]:
    """Returns the test cases of a test.xml."""
    return list(ElementTree.parse(path).getroot().iter("testcase"))


def outcome(case: ElementTree.Element) -> str:
    """Returns "passed", "failed" or "skipped"."""
    children = {child.tag for child in case}
    if children & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in children else "passed"


if __name__ == "__main__":
    sys.exit(main())
