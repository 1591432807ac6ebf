"""The report of a sweep: its data, and what the page shows of them in headless Chromium."""

import json
import re

import pytest

from benchmarks import browser
from engine.base.errors import RunError
from engine.sweeps.importance import Importance
from engine.sweeps.records import read_sweep
from engine.sweeps.report import sweep_data, write_sweep_report
from tests.report.made import full_run
from tests.sweeps.made import complete, failed, make_sweep

EVIL = "<script>alert(1)</script>"
TRIALS = [
    complete(1e-3, 16, 0.5, runs=["trials/0000/seed-0"], results=[0.4, 0.6], interval=[0.3, 0.7]),
    complete(4e-3, 64, 0.9, runs=["trials/0001/seed-0", "trials/0001/seed-1"], results=[0.9, 0.9]),
    complete(2e-3, 16, 0.1, runs=["trials/0002/seed-0"]),  # whose run was removed
    failed(3e-3, EVIL, "failed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_sweep(tmp_path_factory.mktemp("sweeps") / "digits", TRIALS, seeds=2)
    for place, name in enumerate(("0000/seed-0", "0001/seed-0", "0001/seed-1")):
        full_run(made / "trials" / name, shift=place / 10, train__seed=place)
    write_sweep_report(made, made / "report.html")
    return made


def test_report_has_the_runs_of_the_best_trials_first(folder):
    html = (folder / "report.html").read_text()
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert [run["name"] for run in data["runs"]] == ["0001/seed-0", "0001/seed-1", "0000/seed-0"]
    assert data["groups"] == [{"runs": [0, 1], "label": "trial 1"}, {"runs": [2], "label": "trial 0"}]
    assert data["settings"][2] == ["optimizer.weight_decay", [0.02, 0.02, None]]
    assert data["comparison"] is None and EVIL not in html
    assert [row["run"] for row in data["sweep"]["rows"]] == [0, 2, None, None]


def test_data_of_a_sweep_say_how_settings_are_drawn(folder):
    sweep = read_sweep(folder)
    found = sweep_data(sweep, Importance({"task.width": 0.25}, "note"), [])
    assert found["names"] == ["optimizer.learning_rate", "task.width", "optimizer.weight_decay"]
    assert found["logs"] == [True, False, False] and found["importance"] == [["task.width", 0.25]]
    assert found["tiles"][0] == ["best heldout/accuracy", "0.9", "trial 1"]
    assert found["rows"][1]["low"] == 0.3 and found["rows"][3]["problem"] == EVIL


def test_sweep_without_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="no trial has a run yet"):
        write_sweep_report(make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5)]), tmp_path / "report.html")


@pytest.mark.multiprocess
def test_page_draws_trials_and_settings(folder, tmp_path):
    if browser.program() is None:
        pytest.skip(f"no browser here: {', '.join(browser.PROGRAMS)}; apt-get install chromium, or set CHROMIUM")
    with browser.page(tmp_path) as page:
        page.view(1280, 900)
        page.open(folder / "report.html")
        assert page.run("document.querySelectorAll('#sweep tbody tr').length") == 4
        assert page.run("[...document.querySelectorAll('[data-scatter]')].map(each => each.dataset.scatter)") == [
            "optimizer.learning_rate", "task.width", "optimizer.weight_decay",
        ]  # fmt: skip
        assert page.run("document.querySelectorAll('[data-scatter=\"task.width\"] circle').length") == 3
        assert page.run("document.querySelector('#sweep').textContent").count(EVIL) == 1
        assert page.problems == []
