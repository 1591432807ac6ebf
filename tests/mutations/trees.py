"""Copies of the repository in which one mutation at a time is applied and tested.

A mutation is found by its text anywhere in `engine/`, so that files can move. A row of `mutations.toml` stays valid as
long as its text does.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

TOP = Path(__file__).parents[2]
ROWS = Path(__file__).with_name("mutations.toml")
CODE = "engine"
# A failure by one of these says that the mutated code is no code, not that a test caught its behaviour.
NO_BEHAVIOUR = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")
FAILED = 1  # exit code of pytest if tests failed; collection errors have others
LIMIT_S = 600.0  # for the tests of one mutation, on a busy machine


class MutationError(Exception):
    """A row does not fit the code or the tests."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A small fault: one place of the engine's code, what it becomes, and the tests that fail then."""

    name: str
    breaks: str  # a sentence
    old: str
    new: str
    tests: tuple[str, ...]  # files or node ids, relative to tests/


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What pytest found."""

    code: int
    caught_by: str  # the first test that failed, or an empty text
    seconds: float
    text: str  # output of pytest

    @property
    def is_caught(self) -> bool:
        """Whether a test failed by the behaviour of the code."""
        return self.code == FAILED and bool(self.caught_by)


def read_mutations(path: Path = ROWS) -> list[Mutation]:
    """Returns the rows of the file.

    Raises:
        MutationError: two rows have one name.
    """
    rows = [Mutation(**{**row, "tests": tuple(row["tests"])}) for row in tomllib.loads(path.read_text())["mutation"]]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise MutationError(f"{path.name}: two mutations have the name {max(names, key=names.count)!r}.")
    return rows


def find(mutation: Mutation, top: Path = TOP) -> Path:
    """Returns the file that has the text of a mutation, relative to `top`.

    Raises:
        MutationError: the text occurs nowhere, or more than once.
    """
    counts = {path: path.read_text().count(mutation.old) for path in sorted(top.glob(f"{CODE}/**/*.py"))}
    found = [path.relative_to(top) for path, count in counts.items() for _ in range(count)]
    if len(found) != 1:
        where = ", ".join(map(str, found)) or "nowhere"
        raise MutationError(f"{mutation.name}: its old text must occur once in {CODE}/. Found: {where}.")
    return found[0]


@contextlib.contextmanager
def mutated(mutation: Mutation, top: Path) -> Iterator[None]:
    """Applies a mutation to a tree, and reverts it at the end."""
    path = top / find(mutation, top)
    text, times = path.read_text(), path.stat()
    try:
        path.write_text(text.replace(mutation.old, mutation.new))
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the bytecode of the mutation is out of date


def copy_tree(to: Path, top: Path = TOP) -> None:
    """Copies the files that git tracks or would track, with their changes."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=top,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (top / name).is_file():  # a tracked file may be deleted
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(top / name, to / name)


def run_tests(top: Path, tests: Sequence[str], cache: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Runs tests of a tree in a process of their own, up to the first failure.

    Args:
        top: the tree.
        tests: files or node ids, relative to its folder of tests.
        cache: folder for the programs that JAX compiles.
        limit_s: seconds after which the tests count as not failed.
    """
    report = top / ".mutation.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"tests/{test}" for test in tests]
    path = os.pathsep.join(filter(None, (str(top), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a change within a second that keeps the size would use old bytecode
    start = time.monotonic()
    try:
        result = subprocess.run(
            command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=limit_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return Outcome(-1, "", time.monotonic() - start, f"no result within {limit_s:.0f} s\n{error.stdout or ''}")
    caught = _first_failure(report) if result.returncode == FAILED else ""
    return Outcome(result.returncode, caught, time.monotonic() - start, result.stdout)


def _first_failure(report: Path) -> str:
    """Returns the name of the first test that failed by the behaviour of the code; errors of fixtures do not count."""
    for case in ET.parse(report).getroot().iter("testcase"):
        for failure in case.iter("failure"):
            if not failure.get("message", "").startswith(NO_BEHAVIOUR):
                return case.get("name", "")
    return ""
