"""Adds up the test.xml files of one `bazel test` and prints `N passed, N failed` as the last line.

Bazel's own summary counts targets, not tests. The build events say which report belongs to this
run. Ends with 1 if a test failed, if a target gave no report, or if no test ran.
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
    for line in pathlib.Path(events).read_text().splitlines():
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
    parser.add_argument("--events", required=True)
    parser.add_argument("--code", type=int, required=True, help="exit code of bazel test")
    parser.add_argument("--extra-failures", type=int, default=0)
    args = parser.parse_args()

    found, without = reports(args.events)
    passed = skipped = 0
    failed = args.extra_failures
    for (label, *_), path in sorted(found.items(), key=str):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            outcomes = {child.tag for child in case}
            if outcomes & {"failure", "error"}:
                failed += 1
                print(f"FAILED {label} {case.get('classname', '')}.{case.get('name')}")
            elif "skipped" in outcomes:
                skipped += 1
            else:
                passed += 1
    for label in sorted(without):
        failed += 1
        print(f"FAILED {label} did not run")
    if args.code and not failed:
        failed += 1
        print(f"FAILED bazel test ended with {args.code}")
    if not passed and not failed:
        print("No test ran.")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
