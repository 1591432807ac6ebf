"""The table of `convoy goodput`: one row per attempt, the total, shares, and the note about the wall clock."""

from typing import Any

import pytest

from engine.base.errors import RunError
from engine.observe.goodput_table import goodput, goodput_text
from engine.run.directory import RunDirectory
from engine.run.goodput import KINDS, SLOW, Time, append


def entry(attempt: int, kind: str, seconds: float, steps: int = 0, **more) -> Any:
    return {"attempt": attempt, "kind": kind, "seconds": seconds, "steps": steps, **more}


def table(tmp_path, entries) -> list[list[str]]:
    run = RunDirectory(tmp_path)
    append(run.goodput, entries)
    return [line.split() for line in goodput_text(run).splitlines()]


def test_table_shows_seconds_shares_and_goodput_per_attempt_and_in_total(tmp_path):
    entries = [
        entry(1, "init", 2.0),
        entry(1, "step", 6.0, 60),
        entry(1, "step", -1.0, -10),
        entry(1, "lost", 1.0, 10),
        entry(2, "down", 1.0),
        entry(2, "step", 1.0, 10),
    ]
    head, names, first, second, total, share = table(tmp_path, entries)
    assert " ".join(head) == f"{tmp_path}: goodput 60.0% of 10.0 s, 60 steps in 2 attempts; seconds:"
    assert names[:4] == ["attempt", "init", "restore", "compile"]
    assert first == ["1", "2.00", "0.00", "0.00", "5.00", "0.00", "0.00", "0.00", "1.00", "0.00", "8.00", "50", "10",
                     "62.5%"]  # fmt: skip
    assert (second[0], second[-3:]) == ("2", ["10", "0", "50.0%"])
    assert total == ["total", "2.00", "0.00", "0.00", "6.00", "0.00", "0.00", "0.00", "1.00", "1.00", "10.00", "60",
                     "10", "60.0%"]  # fmt: skip
    assert share == ["share", "20.0%", "0.0%", "0.0%", "60.0%", "0.0%", "0.0%", "0.0%", "10.0%", "10.0%"]


def test_columns_are_aligned(tmp_path):
    run = RunDirectory(tmp_path)
    append(run.goodput, [entry(1, "step", 12345.678, 4), entry(100, "init", 1.0)])
    lines = goodput_text(run).splitlines()[1:-1]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("        1  ")


def test_only_the_last_attempts_are_listed(tmp_path):
    rows = table(tmp_path, [entry(attempt, "step", 1.0, 1) for attempt in range(1, 31)])
    assert rows[2] == ["(10", "earlier)"]
    assert [row[0] for row in rows[3:-2]] == [str(attempt) for attempt in range(11, 31)]
    assert rows[-2][-3] == "30"


def test_time_lost_to_slow_processes_is_summed_by_process_and_cause(tmp_path):
    slow = [
        entry(attempt, SLOW, seconds, process=f"process {index} (host a)", cause=cause)
        for attempt, seconds, index, cause in [(1, 10.0, 2, "data"), (1, 50.0, 1, "throttled"), (2, 20.0, 2, "data")]
    ]
    text = goodput_text(_run(tmp_path / "run", entry(1, "step", 100.0, 10), *slow))
    assert "goodput 100.0% of 100 s" in text or "goodput 100.0% of 1 min 40 s" in text
    assert [line for line in text.splitlines() if "lost to" in line] == [
        "Of this time, about 50.0 s were lost to process 1 (host a) (throttled).",
        "Of this time, about 30.0 s were lost to process 2 (host a) (data).",
    ]


def test_note_appears_when_the_wall_clock_was_used(tmp_path):
    assert "wall clock" not in goodput_text(_run(tmp_path / "a", entry(2, "down", 1.0)))
    text = goodput_text(_run(tmp_path / "b", entry(2, "down", 1.0, wall=True), entry(2, "init", 1.0)))
    assert text.endswith("by the wall clock, which may have been adjusted.")


def _run(path, *entries) -> RunDirectory:
    path.mkdir()
    append(path / "goodput.jsonl", entries)
    return RunDirectory(path)


def test_damaged_lines_are_counted(tmp_path):
    run = RunDirectory(tmp_path)
    run.goodput.write_text('{"kind": "step", "seconds": 1e999}\n\0\n')
    append(run.goodput, [entry(1, "step", 6.0, 60)])
    with open(run.goodput, "a") as file:
        file.write('{"kind": "step", "sec')
    *_, note = goodput_text(run).splitlines()
    assert note.startswith(f"warning: {run.goodput}: skipped 3 damaged lines, the first is line 1: 1e999 is no number")
    run.goodput.write_text("{")
    with pytest.raises(RunError, match="damaged, so the time of this run is unknown"):
        goodput_text(run)


def test_missing_ledger_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match=r"goodput\.jsonl: missing or empty, .* Pass the --workdir"):
        goodput_text(RunDirectory(tmp_path))
    assert goodput({kind: Time() for kind in KINDS}) == 0.0


def test_slowest_stage_of_reading_is_named(tmp_path):
    run = RunDirectory(tmp_path)
    decoding = {"readers": 2, "cores": 8}
    entries = [
        entry(1, "step", 5.0, 10, reading={"read": 1.0, "decode": 7.0, "transfer": 3.0}, **decoding),
        entry(1, "data wait", 5.0),
        entry(2, "step", 0.0, reading={"decode": 8.0}, **decoding),
    ]
    append(run.goodput, entries)
    assert goodput_text(run).splitlines()[-2:] == [
        "Reading data: decode 94%, read 6% of the readers' time.",
        "The run waits for data 50% of the time: decode takes 94% of the readers' time; more workers would help "
        "(data.workers).",
    ]
