"""The file of a report: it holds everything, loads nothing, and no text of a run can be markup."""

import hashlib
import json
import re
from pathlib import Path

import pytest

import engine.report
from engine.base.errors import RunError
from engine.experiments.compare import compare
from engine.report import page
from engine.report.gather import Gathered
from tests.report.made import full_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def two_runs(folder: Path) -> list[Gathered]:
    rates = {"a": 0.1, "b": 0.2}
    return [Gathered(full_run(folder / name, optimizer__learning_rate=rate)) for name, rate in rates.items()]


def data_of(html: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])


def test_page_holds_its_data_and_loads_nothing(tmp_path):
    page.write_report([full_run(tmp_path / "a")], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert data_of(html)["runs"][0]["name"] == "a"
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "%%" not in html


def test_names_and_texts_of_a_run_are_no_markup(tmp_path):
    folder = tmp_path / EVIL.replace("/", "|")
    run = full_run(folder, state="failed", reason=EVIL, metrics={EVIL: 1.0}, optimizer__clip_norm=1.0)
    (run / "log.txt").write_text(f"2026-01-01T00:00:00Z warning: {EVIL}\n")
    html = page.html(page.report([Gathered(run)]))
    assert html.count("<script") == 3 and html.count("</script>") == 3
    assert "<img src=x" not in html
    assert data_of(html)["runs"][0]["name"] == folder.name


def test_policy_allows_the_scripts_of_the_page_only(tmp_path):
    html = page.html(page.report([Gathered(full_run(tmp_path / "a"))]))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)[0]
    assert len(scripts) == 2
    assert all(page._digest(script) in policy for script in scripts)


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    runs = [
        full_run(tmp_path / f"w{w}s{s}", train__seed=s, train__global_batch_size=w) for w in (8, 16) for s in (0, 1)
    ]
    data = page.report([Gathered(run) for run in runs])
    assert data["groups"] == [
        {"runs": [0, 1], "label": "global_batch_size=8"},
        {"runs": [2, 3], "label": "global_batch_size=16"},
    ]
    assert data["settings"] == [["train.global_batch_size", [8, 8, 16, 16]], ["train.seed", [0, 1, 0, 1]]]


def test_chart_library_is_the_released_one_and_small():
    folder = Path(next(iter(engine.report.__path__)))
    about = json.loads((folder / "vendor" / page.LIBRARY).read_text())
    assert about["license"] == "MIT"
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((folder / "vendor" / name).read_bytes()).hexdigest() == digest, name
    parts = [*folder.glob("vendor/uPlot.*"), *folder.glob("templates/*")]
    assert sum(path.stat().st_size for path in parts) < 1_500_000
    assert sorted(page.SCRIPTS) == sorted(path.name for path in folder.glob("templates/*.js"))


def test_file_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="the report cannot be written"):
        page.write_report([full_run(tmp_path / "a")], tmp_path / "nowhere" / "report.html")


def test_runs_without_metrics_of_examples_are_compared_with_a_note(tmp_path):
    runs = two_runs(tmp_path)
    data = page.report(runs)
    assert data["comparison"]["variants"] == ["a", "b"]
    assert data["comparison"]["differences"] == [["settings", ["optimizer.learning_rate", ["0.1", "0.2"]]]]
    assert "kept no metrics of its examples" in data["comparison"]["notes"][0]
    assert (data["title"], data["focus"]) == ("a, b", "runs")
    data = page.report(runs, compare([run.directory.path for run in runs]))
    assert (data["title"], data["focus"]) == ("b against a", "comparison")


def test_runs_that_cannot_be_compared_say_why(tmp_path):
    runs = two_runs(tmp_path)
    for run in runs:
        file = run.directory.path / "per_example/heldout/40.parquet"
        file.parent.mkdir(parents=True)
        file.write_text("damaged")
    notes = page.report(runs)["comparison"]["notes"]
    assert notes[0].startswith("The results are not compared: ")
    assert "40.parquet" in notes[0]
