"""The command that runs the short benchmarks: what becomes of rows, of failures, and of the page.

Each benchmark runs here in its tiny form, by its own command. Those of `ELSEWHERE` have tests of their own.
"""

import sys
from pathlib import Path

import pytest

from benchmarks import all as run_all
from benchmarks import report
from benchmarks.all import BEGIN, END, Result
from benchmarks.disk import has_compiler
from benchmarks.report import Row
from tests import runs

WITH_ROWS = (
    *run_all.BENCHMARKS,
    *("compare", "coordination", "html_report", "ray_data", "reading", "slow_storage", "sweep"),
)
ELSEWHERE = {
    "accelerator": "accelerator_test.py",
    "aot": "tests/aot",
    "bundles": "bundles_test.py",
    "driving_data": "driving_data_test.py",
    "forecasting": "tests/models/pedestrians/forecasting_table_test.py",
    "kill_storm": "tests/faults/supervisor_test.py",
    "optimizer_matrix": "optimizer_matrix_test.py",
    "perception": "tests/perception/benchmark_test.py",
    "optimizers": "optimizers_test.py",
    "references": "references_test.py",
    "trackers": "trackers_test.py",
}
"""Other benchmarks -> what tests them."""
NO_BENCHMARKS = {"all", "bare_start", "simulated_processes"} | {
    f"{name}_{loop}" for name in ("decoder", "input") for loop in ("engine", "plain", "grain", "torch")
}

PAGE = f"# Numbers\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


@pytest.fixture
def one_device(monkeypatch):
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", **runs.COMPILING}.items():
        monkeypatch.setenv(name, value)


def run_tiny(name, *arguments):
    """Runs a benchmark at its smallest sizes, as a fork of a process that has imported JAX."""
    words = [sys.executable, "-m", f"benchmarks.{name}", "--tiny", *arguments]
    return runs.run(words, env=runs.environment(**runs.COMPILING), timeout=runs.limit(120))


@pytest.mark.multiprocess
def test_rows_and_failures_become_the_table_of_the_page(page, one_device, capfd):
    benchmarks = {"save_stall": ("--mib", "2", "--rounds", "2"), "loop": ("--only", "nothing"), "nowhere": ()}
    assert run_all.main([f"--output={page}"], benchmarks) == 1
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    assert before == "# Numbers\n\n" and after == "\n\nAfter.\n" and "old" not in table
    machine, empty, *lines = table.strip().splitlines()
    assert " cores, " in machine and empty == ""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {len(row) for row in cells} == {4}
    assert [row[0] for row in cells] == [
        "engine, save of 2 MiB / copy: the call",
        "engine, save of 2 MiB / copy: the call and the slower next step",
        "engine, save of 2 MiB until it is durable",
        "`python -m benchmarks.loop --only nothing`",
        "`python -m benchmarks.nowhere`",
    ]
    assert [row[1] for row in cells[3:]] == ["failed: exit code 2", "failed: exit code 1"]
    assert {row[3] for row in cells[:3]} == {"`python -m benchmarks.save_stall --mib 2 --rounds 2`"}
    output = capfd.readouterr()
    assert "[3/3] nowhere" in output.out and table.strip() in output.out
    assert "loop failed: exit code 2" in output.err


@pytest.mark.multiprocess
def test_benchmark_that_hangs_is_ended(one_device):
    result = run_all.run_benchmark("save_stall", ["--mib", "1"], timeout_s=0.2)
    assert result == Result("python -m benchmarks.save_stall --mib 1", [], "no result after 0.2 s")


def test_table_keeps_rows_of_a_benchmark_that_failed_later():
    failed = Result("python -m benchmarks.loop", [Row("step | ratio", (1.0,), at_most=2)], "ValueError: a\nb")
    assert run_all.table([failed], "2 cores").splitlines()[4:] == [
        r"| step \| ratio | 1.00 (1.00-1.00) | at most 2: met | `python -m benchmarks.loop` |",
        "| `python -m benchmarks.loop` | failed: ValueError: a b |  | `python -m benchmarks.loop` |",
    ]


def test_page_without_markers_is_refused_before_the_measurements(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Numbers\n")
    assert run_all.main([f"--output={page}"], {"nowhere": ()}) == 1
    error = capsys.readouterr()
    assert f"{page}: the lines {BEGIN} and {END} are missing" in error.err and "[1/1]" not in error.out


def test_only_some_benchmarks_leave_the_page_as_it_is():
    args = run_all.parse(["--only=loop,decoder"], run_all.BENCHMARKS)
    assert (args.only, args.output) == (["loop", "decoder"], None)


def test_default_is_every_benchmark_and_the_page_of_this_repository():
    args = run_all.parse([], run_all.BENCHMARKS)
    assert args.only == list(run_all.BENCHMARKS)
    run_all.replace_table(args.output.read_text(), "")  # the page has the markers


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        run_all.parse(["--only=loops"], run_all.BENCHMARKS)
    assert "loops is unknown. Allowed: loop, dispatch" in capsys.readouterr().err


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ROWS)
def test_benchmark_runs_in_its_tiny_form(name, tmp_path):
    if name == "slow_storage" and not has_compiler():
        pytest.skip("needs a C compiler")
    file = tmp_path / "rows.jsonl"
    done = run_tiny(name, f"--rows={file}")
    found, error = report.read_rows(file)
    assert (done.returncode, error) == (0, ""), done.stderr
    assert found and all(row.values and row.result for row in found)
    rows = {row.what: row for row in found}
    if name == "decoder":
        row = rows["decoder step, engine / plain JAX"]
        assert float(row.note.rpartition("differ by at most ")[2]) <= 1e-5
    if name == "ragged":
        assert rows["elements / elements without padding: packed"].median < 1.15
        balance = rows["imbalance of 8 ranks of 32 examples, 95th percentile"]
        assert balance.median < 3 and "without Balanced" in balance.note


@pytest.mark.multiprocess
@pytest.mark.slow
def test_planning_runs_in_its_tiny_form():
    done = run_tiny("planning")
    assert done.returncode == 0, done.stderr
    assert "compiled: Spearman " in done.stdout


def test_every_benchmark_is_run_by_a_test():
    folder = Path(run_all.__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("*/__main__.py")]
    commands = {
        file.relative_to(folder).parts[0].removesuffix(".py") for file in files if "__main__" in file.read_text()
    }
    assert commands - NO_BENCHMARKS == {*WITH_ROWS, *ELSEWHERE, "planning"}


def test_interrupted_run_prints_its_rows_and_leaves_the_page(page, capsys, monkeypatch):
    def interrupted(name, arguments, torch):
        return Result(f"python -m benchmarks.{name}", [Row("step", (1.0,))], "interrupted", interrupted=True)

    monkeypatch.setattr(run_all, "run_benchmark", interrupted)
    assert run_all.main([f"--output={page}"], {"loop": (), "dispatch": ()}) == 130
    assert page.read_text() == PAGE
    printed = capsys.readouterr().out
    assert "| step | 1.00 (1.00-1.00) |" in printed and "dispatch" not in printed


def test_result_does_not_hold_the_path_of_an_interpreter(tmp_path, one_device):
    result = run_all.run_benchmark("decoder", ["--small", "--unknown"], torch=str(tmp_path / "python"))
    assert result.command == "python -m benchmarks.decoder --small --unknown --torch=PYTHON"
    assert result.error == "exit code 2"


def test_estimate_covers_each_benchmark():
    assert run_all.MINUTES.keys() == run_all.BENCHMARKS.keys()
