"""The table of "Read your data" lists every reader, with the extras that its module imports."""

import importlib
import re
import tomllib
from pathlib import Path

from engine import readers
from tests.docs import pages

DECODERS = {"DecodeImage", "TFExample"}  # functions of a value or a record, which the page shows with their readers


def table() -> dict[str, set[str]]:
    """Returns reader -> its extras."""
    rows = [line.split("|") for line in (pages.ROOT / "docs/read-your-data.md").read_text().splitlines() if "|" in line]
    found: dict[str, set[str]] = {}
    for _, _, names, extras, *_ in rows:
        for name in re.findall(r"`(\w+)`", names):
            found[name] = set(re.findall(r"`(\w+)`", extras))
    return found


def test_every_reader_is_in_the_table():
    assert set(table()) == set(readers.__all__) - DECODERS


def test_extras_of_the_table_exist_and_are_those_of_the_modules():
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    for name, extras in table().items():
        assert extras <= set(project["optional-dependencies"]), name
        module = importlib.import_module(getattr(readers, name).__module__)
        imported = re.findall(r'import_extra\("[\w.]+", "(\w+)"', Path(str(module.__file__)).read_text())
        assert set(imported) <= extras, name
