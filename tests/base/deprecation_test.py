import re

import pytest

import engine
from engine.base.deprecation import warn_deprecated
from tests.levels import TOP


def test_warning_names_the_replacement_and_the_line_of_the_caller():
    with pytest.warns(
        FutureWarning, match=r"^engine.old is deprecated, and version 0.9.0 .* Use engine.new.$"
    ) as found:
        warn_deprecated("engine.old", "engine.new", removed="0.9.0")
    assert found[0].filename == __file__


def test_what_this_version_no_longer_has_is_gone():
    """A call of warn_deprecated that fails here is due: delete it with the code that it guards."""
    calls = {}
    for file in (TOP / "engine").rglob("*.py"):
        for version in re.findall(r'removed="([\d.]+)"', file.read_text(encoding="utf-8")):
            calls.setdefault(tuple(map(int, version.split("."))), []).append(file.name)
    now = tuple(map(int, re.findall(r"\d+", engine.__version__)))
    assert calls and {version: files for version, files in calls.items() if version <= now} == {}
