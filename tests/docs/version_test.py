"""The version is the same in the code, in the package and in the changelog, and the command line prints it."""

import re
import tomllib

import pytest

import engine
from engine.cli.arguments import make_parser
from tests.docs import pages


def test_code_package_and_changelog_have_the_same_version():
    package = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", (pages.ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and package == newest[1] == engine.__version__


def test_command_line_prints_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        make_parser()[0].parse_args(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"convoy {engine.__version__}\n"


def test_comparison_is_of_the_version_of_this_repository():
    assert f"| Convoy {engine.__version__} |" in (pages.ROOT / "docs/comparison.md").read_text()


def test_rows_of_the_readme_are_those_of_the_whole_comparison():
    short = _rows((pages.ROOT / "README.md").read_text().partition("## Next to other engines")[2])
    whole = _rows((pages.ROOT / "docs/comparison.md").read_text())
    assert len(short) >= 5
    assert [row for row in short if row not in whole] == []


def _rows(text: str) -> list[str]:
    """Returns the rows of the first table of a text, without its head."""
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
