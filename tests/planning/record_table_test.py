"""The table of `convoy plan --runs`: a row for each run, and the errors over all."""

import json

import pytest

from engine.base.errors import RunError
from engine.planning import record
from engine.planning.record import Measured, PlanFile, Predicted
from engine.planning.record_table import plan_table
from engine.run.directory import RunDirectory


def run(path, step_s, *, memory: int | None = 200, problem="", source="measured, a file") -> RunDirectory:
    """Writes a run whose prediction is 10 ms and 100 bytes."""
    path.mkdir()
    predicted = Predicted(
        candidate="data=8, float32",
        machine={"text": "8 x cpu", "source": source, "margin": 0.3},
        seconds={"compute": 0.010},
        memory={"parameters": 100.0},
        problem=problem,
    )
    measured = Measured(step_s=step_s, data_wait=0.0, seconds=90.0, bytes=memory, peak_bytes=None, attempt=1, time="")
    (path / "plan.json").write_text(record.to_text(PlanFile(predicted, measured)))
    return RunDirectory(path)


def test_table_has_a_row_for_each_run_and_the_errors_over_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [
        run(tmp_path / "a", 0.008),
        run(tmp_path / "b", 0.020, memory=50),
        run(tmp_path / "c", 0.0125, memory=None, source="published rates"),
        run(tmp_path / "d", 0.010, problem="the loss has 16 rows"),
    ]
    (tmp_path / "e").mkdir()
    (tmp_path / "e/config.txt").write_text("name: e\n")
    lines = plan_table([*found, RunDirectory("e")]).splitlines()
    assert lines[0].split() == [
        "run", "mesh", "and", "settings", "devices", "rates", "predicted", "measured", "error", "memory", "predicted",
        "compiled", "error",
    ]  # fmt: skip
    assert lines[1].endswith(" -50%") and " 8.0 ms " in lines[1] and "+25%" in lines[1]
    assert "10.0 ms +- 30%" in lines[2] and "20.0 ms" in lines[2] and "-50%" in lines[2] and "+100%" in lines[2]
    assert "assumed" in lines[3] and lines[3].endswith(" -") and "assumed" not in lines[1]
    assert lines[4:] == [
        f"error of the time: median 25%, largest 50% ({tmp_path}/b); 2 of 3 within the stated margin",
        f"error of the memory: median 75%, largest 100% ({tmp_path}/b)",
        f"{tmp_path}/d: no prediction: the loss has 16 rows",
        "e: nothing is recorded. No attempt has trained for 60 s.",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"predicted": {', "Expecting property name"),
        ("", "Expecting value"),
        ('{"predicted": {}, "measured": {"step_s": 0', "Expecting ',' delimiter"),
        ("[1e999]", "1e999 is no number"),
        ('{"predicted": 3}', "predicted: found 3, expected an object"),
    ],
)
def test_damaged_file_is_not_taken_for_a_missing_one(text, why, tmp_path):
    damaged = run(tmp_path / "a", 0.01)
    damaged.plan.write_text(text)
    good = run(tmp_path / "b", 0.01)
    *_, note = plan_table([damaged, good]).splitlines()
    assert note.startswith(f"{damaged.plan}: is damaged ({why}") and "No attempt has trained" not in note
    assert plan_table([good]).splitlines() == plan_table([damaged, good]).splitlines()[:-1]


@pytest.mark.parametrize(("name", "value"), [("step_s", 0), ("step_s", "NaN"), ("bytes", -1), ("step_s", 1e300)])
def test_numbers_that_no_run_measures_are_damage(name, value, tmp_path):
    changed = run(tmp_path / "a", 0.01)
    stored = json.loads(changed.plan.read_text())
    stored["measured"][name] = value
    changed.plan.write_text(json.dumps(stored))
    assert f"measured.{name}: found " in plan_table([changed])


def test_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        plan_table([RunDirectory(tmp_path)])
