"""tools/release: what must be true of the version and the changelog. wheel_test.py tests the wheel and the sdist."""

import subprocess

import pytest

from tools.build import release_main

CHANGELOG = """# Changelog

## [Unreleased]

{unreleased}## [1.2.0] - 2026-11-30

### Added

- A reader.

## [1.1.0] - 2026-10-01

[1.2.0]: https://example.org
"""


@pytest.fixture
def tree(tmp_path):
    """A folder with what a release of 1.2.0 needs."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/__init__.py").write_text('"""Text."""\n\n__version__ = "1.2.0"  # as there\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.format(unreleased=""))
    return tmp_path


def test_complete_release_has_no_problems(tree):
    assert release_main.problems(tree) == []
    assert release_main.changelog(tree) == {"Unreleased": "", "1.2.0": "- A reader.", "1.1.0": ""}


def test_versions_must_agree_and_have_an_entry_with_a_date(tree):
    (tree / "pyproject.toml").write_text('[project]\nversion = "1.3"\n')
    assert release_main.problems(tree) == [
        "engine/__init__.py states another version than pyproject.toml, which has 1.3.",
        "pyproject.toml: version 1.3 is not MAJOR.MINOR.PATCH.",
        "CHANGELOG.md: there is no '## [1.3] - DATE' with entries. Add it, or raise the version.",
    ]
    (tree / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tree / "CHANGELOG.md").write_text(CHANGELOG.format(unreleased="").replace(" - 2026-11-30", ""))
    assert "there is no '## [1.2.0] - DATE'" in release_main.problems(tree)[-1]


def test_entries_that_are_not_released_are_a_problem(tree):
    (tree / "CHANGELOG.md").write_text(CHANGELOG.format(unreleased="### Fixed\n\n- A fault.\n\n"))
    (problem,) = release_main.problems(tree)
    assert problem == "CHANGELOG.md: [Unreleased] has entries. Move them below a heading '## [VERSION] - DATE'."


def test_changes_that_are_not_committed_are_a_problem(tree):
    assert "git status failed" in release_main.uncommitted(tree)[0]
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    assert release_main.uncommitted(tree) == ["the working tree has changes that are not committed."]


def test_missing_licence_is_a_warning(tree):
    (warning,) = release_main.warnings(tree)
    assert warning.startswith("there is no file LICENSE.")
    (tree / "LICENSE").write_text("")
    assert release_main.warnings(tree) == []
