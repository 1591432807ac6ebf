"""The table of cases: what happened to a run, how soon it was detected, what was lost and whether the result is equal.

A test of a case is marked with the name of the case and passes its results to the fixture `add_row`:

    @pytest.mark.case("a worker is killed")
    def test_...(add_row):
        add_row("SIGKILL of a worker", detected_s=5.1, recovered_s=3.0, lost=4, bitwise=True, code=137)

The table is printed at the end. Tests of the whole folder do not start when a case of `CASES` has no test that can run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import harness

CASES = (
    "a worker is killed",
    "the primary is killed",
    "all processes are killed",
    "a process is stopped",
    "a data source hangs",
    "an exception in one process",
    "SIGTERM",
    "a second signal",
    "SIGINT",
    "repeated kills under a supervisor",
    "a crash at the same step",
    "out of memory",
    "processes that do not start",
    "two processes with one index",
    "the coordinator's port is taken",
    "a typo in the config",
    "a mesh that does not divide",
    "processes started differently",
    "a directory that cannot be written",
    "kills during saves",
    "a truncated shard",
    "a flipped bit on disk",
    "missing checkpoint files",
    "no usable checkpoint",
    "a full disk",
    "slow storage",
    "hanging storage",
    "deletion of old checkpoints",
    "two jobs in one directory",
    "other processes and another mesh",
    "another model at resume",
    "another dataset at resume",
    "bad records",
    "data workers that fail",
    "losses that are not finite or spike",
    "a bit flip in memory",
    "clocks that jump or differ",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Results of one test; None in a column that the test does not measure."""

    test: str  # its id
    case: str
    what: str
    detected_s: float | None = None  # from the fault to the exit, or to the message about it
    recovered_s: float | None = None  # from the restart to the first new step
    lost: int | None = None  # steps that were computed again
    bitwise: bool | None = None  # losses, state and examples equal those of the undisturbed run
    code: int | None = None  # exit code of the job
    note: str = ""  # why this machine could not show it


ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture
def add_row(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to the table; called after everything that the test asserts held."""
    rows = request.config.stash[ROWS]
    marker = request.node.get_closest_marker("case")
    assert marker is not None, "a test that adds a row is marked with its case"
    return lambda what, **columns: rows.append(Row(request.node.nodeid, marker.args[0], what, **columns))


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> harness.Outcome:
    """The outcome of an undisturbed run of one process."""
    return harness.undisturbed(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> harness.Outcome:
    """The outcome of an undisturbed run of two processes, whose mesh shards batches and parameters."""
    return harness.undisturbed(tmp_path_factory.mktemp("two"), processes=2, mesh__fsdp=2)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker and creates the table."""
    config.addinivalue_line("markers", "case(name): the case of tests/faults/conftest.py that the test shows")
    config.stash[ROWS] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses unknown cases, and a whole folder without a test for each case. Runs before tests are deselected."""
    here = Path(__file__).parent
    shown = {
        name
        for item in items
        if not any(skip.args[0] for skip in item.iter_markers("skipif"))
        for marker in item.iter_markers("case")
        for name in marker.args
    }
    if unknown := shown - {*CASES}:
        raise pytest.UsageError(f"these cases are not in the list of {__file__}: {', '.join(sorted(unknown))}")
    missing = [name for name in CASES if name not in shown]
    if missing and {item.path for item in items} >= {*here.glob("*_test.py")}:
        raise pytest.UsageError(f"these cases have no test that can run here: {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Fails a test of a case that passed without adding a row."""
    result = yield
    added = any(row.test == pyfuncitem.nodeid for row in pyfuncitem.config.stash[ROWS])
    if pyfuncitem.get_closest_marker("case") is not None and not added:
        pytest.fail("a test of a case calls add_row()")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table."""
    rows = sorted(config.stash[ROWS], key=lambda row: CASES.index(row.case))
    if not rows:
        return
    terminalreporter.section("faults")
    for cells in (("case", "what", "detected", "recovered", "lost", "bitwise", "exit"), *map(_cells, rows)):
        terminalreporter.line("{:35}  {:<60} {:>9} {:>9} {:>5} {:>7} {:>5}".format(*cells))


def _cells(row: Row) -> tuple[str, ...]:
    seconds = ["" if s is None else f"{s:.1f} s" for s in (row.detected_s, row.recovered_s)]
    bitwise = "" if row.bitwise is None else "yes" if row.bitwise else "no"
    lost, code = ("" if value is None else str(value) for value in (row.lost, row.code))
    what = f"{row.what} (not shown: {row.note})" if row.note else row.what
    return row.case, what, *seconds, lost, bitwise, code
