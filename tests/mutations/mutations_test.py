import ast
import re
from pathlib import Path

import pytest

from tests.mutations.trees import CODE, TOP, read_mutations

MUTATIONS = read_mutations()
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def code() -> dict[Path, str]:
    """The text of each file of the engine."""
    return {path: path.read_text() for path in TOP.glob(f"{CODE}/**/*.py")}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_changes_one_place_of_the_code(mutation, code):
    """The old text occurs once, and the mutated file is still Python."""
    found = [path for path, text in code.items() for _ in range(text.count(mutation.old))]
    assert len(found) == 1, f"the old text must occur once, found: {found}. Copy the new text of its line."
    assert mutation.new != mutation.old
    assert len(mutation.old.splitlines()) <= 3
    ast.parse(code[found[0]].replace(mutation.old, mutation.new))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_tests_of_a_mutation_exist(mutation):
    """Each is a file, or a function in it; so a test that is moved or removed is noticed here."""
    assert mutation.tests
    for test in mutation.tests:
        file, _, function = test.partition("::")
        assert (TESTS / file).is_file(), f"{file} does not exist. Name the test that catches this fault now."
        name = re.escape(function.partition("[")[0])
        assert not name or re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test


def test_names_are_words_and_sentences_end():
    for mutation in MUTATIONS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", mutation.name)
        assert mutation.breaks[0].isupper() and mutation.breaks.endswith(".")


def test_faults_cover_all_packages_that_compute_or_decide(code):
    """At least 60 faults, in files of many names: the packages may move, so their names are not written here."""
    files = {path.name for m in MUTATIONS for path, text in code.items() if m.old in text}
    assert len(MUTATIONS) >= 60
    assert len(files) >= 45
