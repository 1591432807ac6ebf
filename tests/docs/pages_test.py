"""The files and commands of the pages work as printed."""

import importlib.util

import pytest

from tests.docs import pages

DOCS = pages.ROOT / "docs"
# page -> the page whose files it uses
CONTINUES = {"add-a-dataset": "add-a-model", "read-your-data": "add-a-model", "sampling": "ragged"}

ELSEWHERE = {"ray", "to-the-vehicle"}  # pages whose commands another test runs
EXECUTED = [page for page in pages.PAGES if pages.commands(page) and page.stem not in ELSEWHERE]


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_commands_of_each_page_succeed_with_its_files(page, tmp_path):
    if page.stem in CONTINUES:
        pages.write_files(DOCS / f"{CONTINUES[page.stem]}.md", tmp_path)
    pages.write_files(page, tmp_path)
    for command in pages.commands(page):
        done = pages.run(command, tmp_path)
        assert done.returncode == pages.exit_code(command), f"{command}\n{done.stdout}\n{done.stderr}"
    for log in tmp_path.glob("runs/killed/log.txt"):  # the page says that this run is resumed, not repeated
        assert "resuming from step" in log.read_text()


def test_page_of_predictions_draws_with_matplotlib_where_it_is_installed(monkeypatch):
    page = DOCS / "predict.md"
    [plotted] = [command for command in pages.commands(page) if "plotted.Plotted" in command] or [None]
    assert (plotted is not None) == bool(importlib.util.find_spec("matplotlib"))
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    assert not any("plotted.Plotted" in command for command in pages.commands(page))


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_files_have_at_most_the_stated_number_of_lines(page):
    for block in pages.files(page):
        lines = [line for line in block.text.splitlines() if line.strip()]
        assert len(lines) <= int(block.value("max_lines") or 10**6), block.value("file")


@pytest.mark.parametrize(
    ("page", "name", "most"),
    [("add-a-model", "forecaster.py", 30), ("add-a-model", "scenes.py", 15), ("add-a-dataset", "recordings.py", 15)],
)
def test_example_model_has_30_lines_and_dataset_15(page, name, most):
    (block,) = (block for block in pages.files(DOCS / f"{page}.md") if block.value("file") == name)
    assert block.value("max_lines") == str(most)
