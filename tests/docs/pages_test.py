"""What the pages tell one to write and to type works as it stands there."""

import pytest

from tests.docs import pages

DOCS = pages.ROOT / "docs"
GOES_ON_WITH = {"add-a-dataset": "add-a-model"}  # a page that uses the files of another


@pytest.mark.parametrize("page", [page for page in pages.PAGES if pages.commands(page)], ids=lambda page: page.stem)
def test_every_command_of_a_page_works_with_the_files_of_that_page(page, tmp_path):
    if page.stem in GOES_ON_WITH:
        pages.write_files(DOCS / f"{GOES_ON_WITH[page.stem]}.md", tmp_path)
    pages.write_files(page, tmp_path)
    for command in pages.commands(page):
        done = pages.run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_a_file_is_no_longer_than_the_page_says(page):
    for block in pages.files(page):
        lines = [line for line in block.text.splitlines() if line.strip()]
        assert len(lines) <= int(block.value("max_lines") or 10**6), block.value("file")


@pytest.mark.parametrize(
    ("page", "name", "most"),
    [("add-a-model", "forecaster.py", 30), ("add-a-model", "scenes.py", 15), ("add-a-dataset", "recordings.py", 15)],
)
def test_a_model_takes_30_lines_and_a_dataset_15(page, name, most):
    (block,) = (block for block in pages.files(DOCS / f"{page}.md") if block.value("file") == name)
    assert block.value("max_lines") == str(most)
