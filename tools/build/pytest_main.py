"""Runs pytest as a Bazel test: with shards, --test_filter and the XML report."""

import os
import sys

import pytest


class _Shard:
    """Keeps every total-th of the collected tests, from index on."""

    def __init__(self, index: int, total: int) -> None:
        self.index = index
        self.total = total

    def pytest_collection_modifyitems(self, config, items) -> None:
        dropped = [item for i, item in enumerate(items) if i % self.total != self.index]
        config.hook.pytest_deselected(items=dropped)
        items[:] = items[self.index :: self.total]


def main(argv: list[str]) -> int:
    """Runs pytest with argv and returns its exit code."""
    env = os.environ
    # Processes that a test starts find the same modules, and a home to write to.
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if "TEST_TMPDIR" in env:
        env["HOME"] = env["TEST_TMPDIR"]
    args = ["-p", "no:cacheprovider"]
    plugins = []
    shards = int(env.get("TEST_TOTAL_SHARDS", "1"))
    if shards > 1:
        plugins.append(_Shard(int(env["TEST_SHARD_INDEX"]), shards))
        if "TEST_SHARD_STATUS_FILE" in env:  # tells Bazel that we know of shards
            open(env["TEST_SHARD_STATUS_FILE"], "w").close()
    if "TESTBRIDGE_TEST_ONLY" in env:
        args += ["-k", env["TESTBRIDGE_TEST_ONLY"]]
    if "XML_OUTPUT_FILE" in env:
        args.append("--junitxml=" + env["XML_OUTPUT_FILE"])
    if "TEST_TMPDIR" in env:
        args.append("--basetemp=" + os.path.join(env["TEST_TMPDIR"], "pytest"))
    code = pytest.main(args + argv, plugins=plugins)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED and (shards > 1 or "TESTBRIDGE_TEST_ONLY" in env):
        return 0
    return int(code)
