"""The data of a report: what is gathered of a run, and names that tell runs apart."""

import pytest

from engine.base import json_text
from engine.base.errors import RunError
from engine.report.gather import IMAGE_BYTES, Gathered, all_data, names_of
from tests.report.made import full_run, write_figure


def test_run_is_gathered_from_its_files(tmp_path):
    [data] = all_data([Gathered(full_run(tmp_path / "a", steps=40))])
    json_text.dumps(data)  # plain values only
    assert (data["name"], data["state"], data["step"], data["best"]) == ("a", "done", 40, 20)
    assert data["tiles"][0] == ["heldout/accuracy", "0.8", "best, at step 20"]
    assert data["curves"]["training/loss"]["s"][:3] == [1, 1, 1]  # differences
    assert data["curves"]["training/data_wait_s"]["v"][0] == 0.004
    assert not any("night" in name for name in data["curves"])  # slices have a table
    assert [mark[:2] for mark in data["marks"]] == [["slow", 10], ["checkpoint", 40], ["best", 20]]
    assert [example for example, _ in data["worst"][0]["figures"]] == [7, 3]
    assert data["images"][0]["name"] == "lights/map.png"
    assert data["warnings"] == [["2026-01-01T00:00:00Z", "the disk is slow"]]


def test_values_that_are_not_finite_are_a_warning_except_for_those_of_slices(tmp_path):
    run = full_run(tmp_path / "a", steps=40)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "batch": 40, "loss": "NaN"}\n')
        file.write('{"step": 41, "heldout/accuracy": "NaN", "heldout/loss": "NaN", "heldout/night/accuracy": "NaN"}\n')
    [data] = all_data([Gathered(run)])
    assert [text for _, text in data["warnings"][:2]] == [
        "Not finite: 1 values of training, the first at step 41 (training/loss).",
        "Not finite: 2 values of evaluations and hooks, the first at step 41 (heldout/accuracy, heldout/loss).",
    ]


def test_failed_run_says_why(tmp_path):
    [data] = all_data([Gathered(full_run(tmp_path / "a", state="failed", reason="the loss is not finite"))])
    assert data["warnings"][0] == ["", "the loss is not finite"]


def test_damaged_record_of_the_code_is_a_warning(tmp_path):
    run = full_run(tmp_path / "a")
    (run / "code.json").write_text("{")
    [data] = all_data([Gathered(run)])
    assert data["warnings"][0][1].startswith(f"{run}/code.json is damaged: Expecting")


def test_run_that_has_just_started_is_gathered(tmp_path):
    run = full_run(tmp_path / "a")
    for name in ("metrics.jsonl", "goodput.jsonl", "log.txt", "status.json"):
        (run / name).unlink()
    [data] = all_data([Gathered(run)])
    assert (data["state"], data["curves"]) == ("damaged", {})


def test_images_of_a_report_are_bounded_and_the_rest_is_counted(tmp_path, monkeypatch):
    run = full_run(tmp_path / "a")
    size = write_figure(run / "figures/lights/map.png") or (run / "figures/lights/map.png").stat().st_size
    monkeypatch.setattr("engine.report.gather.IMAGE_BYTES", 2 * size)
    [data] = all_data([Gathered(run)])
    assert data["warnings"][-1][1].startswith("1 images are left out")
    assert IMAGE_BYTES == 3 << 20


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["runs/a", "runs/a"], ["a (1)", "a (2)"]),
    ],
)
def test_names_are_the_fewest_parts_that_differ(paths, names):
    assert names_of(paths) == names


def test_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        Gathered(tmp_path)
