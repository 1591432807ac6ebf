"""Time, memory and mesh of a run, from its ledger and its plan."""

import json

from engine.report import cost
from engine.report.rows import read_rows
from engine.run.directory import RunDirectory
from tests.report.made import full_run, training, write_rows


def test_time_is_summed_by_kind_and_attempt(tmp_path):
    time, marks, note = cost.goodput(RunDirectory(full_run(tmp_path / "a", steps=40)))
    assert dict(zip(time["kinds"], time["total"], strict=True))["step"] == 6.0
    assert (time["wall"], time["share"], time["steps"], time["earlier"], note) == (10.0, 0.6, 40, 0, "")
    assert time["slow"] == [["process 1", "data", 1.5]]
    assert [(mark.kind, mark.step) for mark in marks] == [("slow", 10)]


def test_run_without_ledger_has_no_time(tmp_path):
    (tmp_path / "a").mkdir()
    time, marks, _ = cost.goodput(RunDirectory(tmp_path / "a"))
    assert (time["wall"], time["share"], marks) == (0, None, [])


def test_plan_has_the_parts_of_a_step_and_of_the_memory(tmp_path):
    predicted = {
        "seconds": {"compute": 0.5, "bubble": 0.0},
        "memory": {"parameters": 8.0},
        "machine": {"text": "8 x h100"},
    }
    planned = {**predicted, "settings": {"mesh.data": 8}}
    (tmp_path / "plan.json").write_text(json.dumps({"predicted": planned, "measured": {"step_s": 0.7, "bytes": 9}}))
    found = cost.plan(tmp_path / "plan.json")
    assert found["step"] == {"parts": [("compute", 0.5)], "measured": 0.7}
    assert found["memory"] == {"parts": [("parameters", 8.0)], "compiled": 9, "peak": None}
    texts = {"mesh.data": "auto", "mesh.fsdp": "1", "mesh.preset": "auto", "train.seed": "0"}
    assert cost.mesh(tmp_path / "plan.json", texts) == [("data", "8"), ("preset", "auto")]


def test_damaged_plan_is_left_out(tmp_path):
    (tmp_path / "plan.json").write_text('{"predicted": 3}')
    assert cost.plan(tmp_path / "plan.json") == {}
    assert cost.mesh(tmp_path / "plan.json", {"mesh.data": "2"}) == [("data", "2")]


def test_memory_of_a_device_comes_before_that_of_the_process(tmp_path):
    write_rows(tmp_path, [training(1, 1.0, host_rss_gib=3.0), training(2, 1.0, host_rss_gib=2.0, device_peak_gib=9.0)])
    assert cost.highest_memory(read_rows(tmp_path / "metrics.jsonl")) == ("of a device, peak", 9.0)
