"""Collects the rows of the table of faults: what happened to a run, how soon it was detected, what was lost.

A test of a case is marked with the name of the case and passes its results to the fixture `add_row`:

    @pytest.mark.case("a worker is killed")
    def test_...(add_row):
        add_row("SIGKILL of a worker", detected_s=5.1, recovered_s=3.0, lost=4, bitwise=True, code=137)

The table is printed at the end, and compared with the stored one (`table.py`). `--store-rows` stores it. Tests of the
whole folder do not start when a case has no test that can run.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import harness, table
from tests.faults.table import CASES, Row

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
def two_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an undisturbed run of two processes with an evaluation; it shards batches and parameters."""
    folder = tmp_path_factory.mktemp("two")
    harness.undisturbed(folder, processes=2, mesh__fsdp=2, **harness.EVALUATED)
    return folder / "run"


@pytest.fixture(scope="session")
def two(two_run: Path) -> harness.Outcome:
    """The outcome of that run."""
    return harness.outcome(two_run)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--store-rows`."""
    parser.addoption("--store-rows", action="store_true", help="store the rows of these tests and write their page")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker and creates the table."""
    config.addinivalue_line("markers", "case(name): the case of tests/faults/table.py that the test shows")
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
        raise pytest.UsageError(f"these cases are not in {table.__file__}: {', '.join(sorted(unknown))}")
    # A Bazel target that lacks the file of a case leaves it to the target that has the file.
    elsewhere = {row.case for row in table.read_rows() if not (here / Path(row.test.partition("::")[0]).name).exists()}
    missing = [name for name in CASES if name not in shown | elsewhere]
    if missing and {item.path for item in items} >= {*here.glob("*_test.py")}:
        raise pytest.UsageError(f"these cases have no test that can run here: {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Fails a test of a case that passed without adding a row, or with other rows than the stored ones."""
    result = yield
    if pyfuncitem.get_closest_marker("case") is not None:
        added = [row for row in pyfuncitem.config.stash[ROWS] if row.test == pyfuncitem.nodeid]
        if not added:
            pytest.fail("a test of a case calls add_row()")
        if not pyfuncitem.config.getoption("--store-rows") and (why := table.difference(pyfuncitem.nodeid, added)):
            pytest.fail(why)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table; stores it with `--store-rows`."""
    rows = sorted(config.stash[ROWS], key=lambda row: CASES.index(row.case))
    if not rows:
        return
    terminalreporter.section("faults")
    head = ("case", "what", "detected", "recovered", "lost", "bitwise", "exit")
    for texts in (head, *((row.case, *table.cells(row)) for row in rows)):
        terminalreporter.line("{:35}  {:<60} {:>9} {:>9} {:>5} {:>7} {:>5}".format(*texts))
    if config.getoption("--store-rows"):
        table.store_rows(rows)
