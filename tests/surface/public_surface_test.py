"""The public surface of the engine as text, so that a diff shows each change that a user could notice.

To accept a change: CONVOY_UPDATE_GOLDENS=1 python -m pytest tests/surface/public_surface_test.py
"""

import difflib
import os
import pathlib

import pytest

from tests.surface import command_line, config_fields, dotted_paths, exit_codes, public_names, run_files

GOLDEN = pathlib.Path(__file__).parent / "golden"
COMMAND = "CONVOY_UPDATE_GOLDENS=1 python -m pytest tests/surface/public_surface_test.py"
UPDATE = os.environ.get("CONVOY_UPDATE_GOLDENS") == "1"
MODULES = [*(module.__name__ for module in public_names.MODULES), "documented"]
SUBJECTS = {"command_line": command_line.text, "config_fields": config_fields.text, "exit_codes": exit_codes.text}
PATHS = GOLDEN / "dotted_paths.txt"


def compare(name: str, text: str) -> None:
    """Compares a text with its golden file, which it replaces if the update is wanted."""
    golden = GOLDEN / f"{name}.txt"
    if UPDATE:
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"{name} has no golden text. To create it: {COMMAND}"
    wanted = golden.read_text(encoding="utf-8")
    lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), "golden", "now", n=2, lineterm="")
    assert text == wanted, f"{name} differs from its golden text. To accept the change: {COMMAND}\n" + "\n".join(lines)


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    return public_names.texts()


@pytest.mark.parametrize("module", MODULES)
def test_public_names_match_their_golden_text(names: dict[str, str], module: str):
    compare(f"names_{module}", names[module])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subject_matches_its_golden_text(subject: str):
    compare(subject, SUBJECTS[subject]())


def test_files_of_a_run_match_their_golden_text(tmp_path: pathlib.Path):
    run_files.make(tmp_path)
    compare("run_files", run_files.text(tmp_path))


def test_every_golden_text_has_a_subject():
    known = {f"names_{module}" for module in MODULES} | {*SUBJECTS, "run_files", "dotted_paths"}
    assert {file.stem for file in GOLDEN.glob("*.txt")} == known


def golden_paths() -> list[str]:
    return PATHS.read_text(encoding="utf-8").splitlines() if PATHS.is_file() else []


def test_golden_list_has_every_dotted_path_that_files_name():
    """A path stays in the list when no file names it any more, since configs of users and stored runs may."""
    found = dotted_paths.found()
    assert found
    if UPDATE:
        PATHS.write_text("".join(f"{path}\n" for path in sorted({*golden_paths(), *found})), encoding="utf-8")
    assert sorted(found - {*golden_paths()}) == [], f"To add them: {COMMAND}"


@pytest.mark.parametrize("path", golden_paths())
def test_dotted_path_resolves(path: str):
    dotted_paths.check(path)
