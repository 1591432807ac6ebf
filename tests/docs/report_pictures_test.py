"""The script that takes the pictures of the page on reports, with runs that were made without training."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import browser
from engine.config.loading import load
from tests.docs.pages import ROOT
from tests.report.made import full_run

COMMIT = "0123456789abcdef"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "docs/images/report.py"))


@pytest.fixture
def folder(script, tmp_path):
    """The runs of the script, as if one commit had trained them."""
    for name, (width, seed) in script["RUNS"].items():
        full_run(tmp_path / name, train__seed=seed, train__global_batch_size=width)
        write_code(tmp_path / name)
    return tmp_path


def write_code(run: Path, commit: str = COMMIT, dirty: bool | None = False) -> None:
    found = {"folders": [], "commit": commit, "dirty": dirty, "packages": {}, "attempt": 1, "time": "2026-01-01T00:00Z"}
    (run / "code.json").write_text(json.dumps(found))


def test_finished_runs_are_not_trained_and_the_others_have_valid_settings(script, folder):
    assert all(script["is_done"](folder / name) for name in script["RUNS"])
    script["train"](folder)
    assert not script["is_done"](folder / "nowhere")
    config = load(script["CONFIG"], [flag.removeprefix("--config.") for flag in script["flags"]("narrow-1")])
    assert (config.train.seed, config.task.arguments["width"]) == (1, 16)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_pictures_are_taken_from_finished_runs(script, folder, tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    if browser.program() is None:
        pytest.skip(f"no browser here: {', '.join(browser.PROGRAMS)}")
    output = tmp_path / "pictures"
    output.mkdir()
    monkeypatch.setattr(sys, "argv", ["report.py", f"--runs={folder}", f"--output={output}"])
    script["main"]()
    sizes = {}
    for path in output.iterdir():
        with image.open(path) as picture:
            sizes[path.name] = picture.size
    assert sorted(sizes) == sorted(path.name for path in (ROOT / "docs/images").glob("*-*.png") if is_of_report(path))
    assert set(sizes.values()) == {(script["WIDTH"], script["HEIGHT"])}


def is_of_report(path: Path) -> bool:
    return path.stem.partition("-")[0] in ("report", "comparison")


@pytest.mark.parametrize(
    ("commit", "dirty", "message"),
    [
        (COMMIT, True, "with uncommitted changes"),
        ("", False, "was trained by"),
        ("fedcba9876543210", False, "the runs are of several commits"),
    ],
)
def test_runs_of_other_code_are_refused(script, folder, commit, dirty, message):
    write_code(folder / "wide-0", commit, dirty)
    with pytest.raises(SystemExit, match=message):
        script["check_code"](folder)
