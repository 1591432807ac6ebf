"""Runs pytest as a Bazel test, with support for shards, --test_filter and the XML report."""

import os
import sys

import pytest


class _Shard:
    """Pytest plugin that runs one shard of the tests: whole files, or single tests where there is only one file."""

    def __init__(self, index: int, total: int) -> None:
        self.index = index
        self.total = total

    def pytest_collection_modifyitems(self, config, items) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        numbers = [files.index(item.path) for item in items] if len(files) > 1 else range(len(items))
        kept = [item for item, number in zip(items, numbers, strict=True) if number % self.total == self.index]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def main(argv: list[str]) -> int:
    """Runs pytest with argv and returns its exit code."""
    env = os.environ
    # Processes that a test starts import the same modules and can write to their home directory.
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if "TEST_TMPDIR" in env:
        env["HOME"] = env["TEST_TMPDIR"]
    args = ["-p", "no:cacheprovider"]
    plugins = []
    shards = int(env.get("TEST_TOTAL_SHARDS", "1"))
    if shards > 1:
        plugins.append(_Shard(int(env["TEST_SHARD_INDEX"]), shards))
        if "TEST_SHARD_STATUS_FILE" in env:  # tells Bazel that this runner supports shards
            open(env["TEST_SHARD_STATUS_FILE"], "w").close()
    if "TESTBRIDGE_TEST_ONLY" in env:
        args += ["-k", env["TESTBRIDGE_TEST_ONLY"]]
    if "XML_OUTPUT_FILE" in env:
        args.append("--junitxml=" + env["XML_OUTPUT_FILE"])
    if "TEST_TMPDIR" in env:
        args.append("--basetemp=" + os.path.join(env["TEST_TMPDIR"], "pytest"))
    code = pytest.main(args + argv, plugins=plugins)
    selects = shards > 1 or "TESTBRIDGE_TEST_ONLY" in env or any(arg.startswith("-m") for arg in argv)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED and selects:
        return 0
    return int(code)
