"""The table of cases: what happened to a run, how soon it was noticed, what was lost, and whether bits differ.

A test of a case asks for the fixture `case` and hands its row over when everything that it asserts held:

    case(1, "SIGKILL of a worker", detected_s=5.1, recovered_s=3.0, lost=4, bitwise=True, code=137)

The table is printed at the end; a run of the whole folder fails when a case of the list has no row.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import bench

CASES = range(1, 37)


@dataclasses.dataclass(frozen=True)
class Row:
    """One case; None where a column says nothing about it."""

    number: int
    what: str
    detected_s: float | None = None  # from the fault to the exit, or to the sentence about it
    recovered_s: float | None = None  # from the restart to the first new step
    lost: int | None = None  # steps done again
    bitwise: bool | None = None  # losses, state and examples are those of the unbroken run
    code: int | None = None  # exit code of the job
    note: str = ""  # why it could not be shown on this machine


ROWS = pytest.StashKey[list[Row]]()
LACKING = pytest.StashKey[list[int]]()


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest) -> Callable[..., None]:
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda number, what, **columns: rows.append(Row(number, what, **columns))


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> bench.Outcome:
    """The unbroken run of one process."""
    return bench.unbroken(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> bench.Outcome:
    """The unbroken run of two processes on a mesh of two that splits rows and parameters."""
    return bench.unbroken(tmp_path_factory.mktemp("two"), ranks=2, mesh__fsdp=2)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fails a run of the whole folder that has not a row for each case."""
    here, option = Path(__file__).parent, session.config.option
    whole = {item.path for item in session.items} >= set(here.glob("*_test.py"))
    if not whole or option.keyword or option.markexpr:
        return
    found = {row.number for row in session.config.stash.get(ROWS, [])}
    session.config.stash[LACKING] = [number for number in CASES if number not in found]
    if exitstatus == 0 and session.config.stash[LACKING]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table."""
    rows = sorted(config.stash.get(ROWS, []), key=lambda row: row.number)
    if not rows:
        return
    terminalreporter.section("fault bench")
    for cells in (("case", "", "detected", "recovered", "lost", "bitwise", "exit"), *map(_cells, rows)):
        terminalreporter.line("{:>4}  {:<60} {:>9} {:>9} {:>5} {:>7} {:>5}".format(*cells))
    if lacking := config.stash.get(LACKING, []):
        terminalreporter.line(f"cases without a row: {', '.join(map(str, lacking))}", red=True)


def _cells(row: Row) -> tuple[str, ...]:
    seconds = ["" if s is None else f"{s:.1f} s" for s in (row.detected_s, row.recovered_s)]
    bitwise = "" if row.bitwise is None else "yes" if row.bitwise else "no"
    lost, code = ("" if value is None else str(value) for value in (row.lost, row.code))
    what = f"{row.what} (not shown: {row.note})" if row.note else row.what
    return str(row.number), what, *seconds, lost, bitwise, code
