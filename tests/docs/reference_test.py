"""The pages name what exists, and all of it: links, settings, packages, public names, fields of files, exit codes."""

import dataclasses
import importlib
import inspect
import re

import pytest

import engine
import engine.adapters
import engine.augmentation
import engine.bundles
import engine.config
import engine.hub
import engine.layers
import engine.metrics
import engine.optimizers
import engine.perception
import engine.plot
import engine.quantization
import engine.readers
import engine.sweeps
import engine.tuning
from engine.cluster.exit_status import ExitStatus
from engine.config.override import locate
from engine.run.status import Status
from tests.docs import pages

RUNS = (pages.ROOT / "docs" / "runs.md").read_text()


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_fences_have_only_a_language(page):
    """Markdown renderers take a fence with further words for text."""
    assert re.findall(r"^```\w+[^\w\n].*$", page.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_relative_links_name_existing_files(page):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert [link for link in links if link and "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page.stem != "faq"], ids=lambda page: page.stem)
def test_config_flags_name_fields_of_the_schema(page):
    for name in re.findall(r"--config\.([a-z_][\w.]*)", page.read_text()):
        locate(name)


def test_table_of_levels_lists_each_engine_package():
    folders = {path.parent.name for path in (pages.ROOT / "engine").glob("*/__init__.py")}
    page = (pages.ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [a-z ]+ \| \d+ \| (.*?) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)/`", row)} == folders


def test_runs_page_describes_each_field_of_status_json():
    assert [field.name for field in dataclasses.fields(Status) if f"`{field.name}`" not in RUNS] == []


def test_runs_page_describes_each_exit_code():
    codes = set(ExitStatus)
    table = RUNS.split("## Exit codes", 1)[1]
    assert {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")} == codes


PACKAGES = [
    engine,
    engine.adapters,
    engine.augmentation,
    engine.bundles,
    engine.config,
    engine.hub,
    engine.layers,
    engine.metrics,
    engine.optimizers,
    engine.perception,
    engine.plot,
    engine.quantization,
    engine.readers,
    engine.sweeps,
    engine.tuning,
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_api_reference_lists_each_public_name(package):
    listed = [name.rpartition(".") for name, _ in pages.reference(package.__name__)]
    assert sorted(name for module, _, name in listed if module == package.__name__) == sorted(
        set(package.__all__) - {package.__name__.removeprefix("engine.") for package in PACKAGES}
    )  # pages of their own


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_api_reference_names_the_file_with_the_signatures(package):
    page = pages.ROOT / "docs" / "reference" / f"{package.__name__.rpartition('.')[2]}.md"
    [file] = re.findall(r"has no signatures: `(.*)`", page.read_text())
    assert f"{package.__name__}.txt" in file
    assert re.search(r"^(class|def) ", (pages.ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_api_reference_describes_each_name_with_the_start_of_its_docstring(package):
    for name, sentence in pages.reference(package.__name__):
        module, _, last = name.rpartition(".")
        docstring = inspect.getdoc(getattr(importlib.import_module(module), last)) or ""
        words = re.findall(r"\w+", sentence)
        assert re.findall(r"\w+", docstring)[: len(words)] == words, f"{name}: {docstring}"
