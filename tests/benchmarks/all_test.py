"""The command that runs the short benchmarks: what becomes of rows, of failures, and of the page."""

import pytest

from benchmarks import all as run_all
from benchmarks.all import BEGIN, END, Result
from benchmarks.report import Row

PAGE = f"# Numbers\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")


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
