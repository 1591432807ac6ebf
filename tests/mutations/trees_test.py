import os
import subprocess
from pathlib import Path

import pytest

from tests.mutations.trees import Mutation, MutationError, copy_tree, find, mutated, run_tests

SUM = "def total(values):\n    return sum(values)\n"
TEST = "from engine.sums import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"


def mutation(old: str, new: str) -> Mutation:
    return Mutation("wrong-sum", "The sum is wrong.", old, new, ("sums_test.py",))


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small repository with one file of code and its test."""
    top = tmp_path / "tree"
    for name, text in {"engine/__init__.py": "", "engine/sums.py": SUM, "tests/sums_test.py": TEST}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "pyproject.toml").write_text('[tool.pytest.ini_options]\npython_files = ["*_test.py"]\npythonpath = ["."]\n')
    return top


def caught(tree: Path, change: Mutation) -> str:
    with mutated(change, tree):
        outcome = run_tests(tree, change.tests, tree / "cache")
    assert outcome.is_caught == bool(outcome.caught_by)
    return outcome.caught_by


def test_failed_test_catches_a_mutation_and_the_code_is_restored(tree):
    path = tree / "engine/sums.py"
    before = path.stat().st_mtime_ns
    assert run_tests(tree, ["sums_test.py"], tree / "cache").code == 0
    assert caught(tree, mutation("sum(values)", "max(values)")) == "test_total"
    assert path.read_text() == SUM and path.stat().st_mtime_ns == before
    assert run_tests(tree, ["sums_test.py"], tree / "cache").code == 0


@pytest.mark.parametrize(
    "new",
    [
        pytest.param("sum(list(values))", id="survivor"),
        pytest.param("sum(values", id="syntax"),
        pytest.param("sums(values)", id="unknown-name"),
    ],
)
def test_mutation_without_another_behaviour_is_not_caught(tree, new):
    assert caught(tree, mutation("sum(values)", new)) == ""


def test_text_must_occur_once_in_the_code(tree):
    assert find(mutation("sum(values)", ""), tree) == Path("engine/sums.py")
    with pytest.raises(MutationError, match="Found: nowhere"):
        find(mutation("min(values)", ""), tree)
    (tree / "engine/more.py").write_text(SUM)
    with pytest.raises(MutationError, match=r"Found: engine/more.py, engine/sums.py"):
        find(mutation("sum(values)", ""), tree)


def test_copy_has_changed_and_new_files_but_no_ignored_ones(tree, tmp_path):
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for words in (["init", "-q"], ["add", "engine"]):
        subprocess.run(["git", *words], cwd=tree, check=True, env=os.environ | git)
    (tree / ".gitignore").write_text("*.log\n")
    (tree / "engine/a.log").write_text("")
    (tree / "engine/sums.py").write_text("changed")
    copy_tree(tmp_path / "copy", tree)
    names = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    assert names == {".gitignore", "engine/__init__.py", "engine/sums.py", "tests/sums_test.py", "pyproject.toml"}
    assert (tmp_path / "copy/engine/sums.py").read_text() == "changed"
