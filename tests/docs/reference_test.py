"""What the pages name exists: links, settings, verbs, packages, the fields of files, exit codes."""

import dataclasses
import re

import pytest

from engine.cluster.exit_status import ExitStatus
from engine.config.override import locate
from engine.run.status import Status
from tests.docs import pages

RUNS = (pages.ROOT / "docs" / "runs.md").read_text()


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_local_links_lead_to_files(page):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert [link for link in links if link and "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page.stem != "faq"], ids=lambda page: page.stem)
def test_settings_on_command_lines_are_in_the_schema(page):
    for name in re.findall(r"--config\.([a-z_][\w.]*)", page.read_text()):
        locate(name)


def test_the_table_of_levels_has_every_package_of_the_engine():
    folders = {path.parent.name for path in (pages.ROOT / "engine").glob("*/__init__.py")}
    page = (pages.ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| \d \| (.*?) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)/`", row)} == folders


def test_every_field_of_status_json_is_described():
    assert [field.name for field in dataclasses.fields(Status) if f"`{field.name}`" not in RUNS] == []


def test_every_exit_code_is_described():
    codes = set(ExitStatus)
    table = RUNS.split("## Exit codes", 1)[1]
    assert {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")} == codes
