"""The programs of the configs stay the same, so that moved or rewritten code provably changes no run.

To accept a change: python -m tests.configs.step_digests --update
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.configs import step_digests

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(step_digests.GOLDEN.read_text(encoding="utf-8"))
COMMAND = "python -m tests.configs.step_digests"
FROM_PYTHON = re.compile(r"\.py\b|\bloc\(|\b(engine|models|configs|tests|site-packages)\b")


def lowered(function, x: float = 1.0) -> str:
    return step_digests.normalized(jax.jit(function).lower(jnp.full(4, x)).as_text())


def test_the_golden_file_has_the_rows_of_the_table():
    assert list(GOLDEN["rows"]) == list(step_digests.ROWS), f"Write the golden file again: {COMMAND} --update"


def test_the_golden_file_has_the_locked_versions():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE))
    assert GOLDEN["versions"] == {name: locked[name] for name in GOLDEN["versions"]}, (
        f"The digests are not compared with these versions. Write the golden file again: {COMMAND} --update"
    )


@pytest.mark.parametrize("row", step_digests.ROWS)
def test_program_is_that_of_the_golden_file(row):
    if step_digests.versions() != GOLDEN["versions"]:
        pytest.skip(
            f"the digests are those of programs by {GOLDEN['versions']}, and here are {step_digests.versions()}. To "
            f"compare two commits with these: {COMMAND} OUT"
        )
    texts = dict(step_digests.texts(row))
    found = {name: step_digests.digest(text) for name, text in texts.items()}
    wanted = GOLDEN["rows"][row]
    changed = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    file = step_digests.file_name(row)
    assert not changed, (
        f"{row}: {' and '.join(changed)} changed. To see the difference, run `{COMMAND} OUT` at this commit and at an "
        f"earlier one, and compare OUT/{file}.{changed[0]}.mlir. To accept it: {COMMAND} --update"
    )
    assert {name: FROM_PYTHON.search(text) for name, text in texts.items()} == dict.fromkeys(texts)


def test_names_of_python_functions_do_not_change_the_text():
    @jax.jit
    def helper(x):
        return {"a": x * 2}

    @jax.jit
    def renamed(y):
        return {"b": y * 2}

    def one(x):
        return helper(x), helper(x + 1)

    def two(x):
        return renamed(x), renamed(x + 1)

    assert "@helper" in jax.jit(one).lower(jnp.ones(4)).as_text()
    assert lowered(one) == lowered(two)


def test_another_constant_changes_the_digest():
    assert step_digests.digest(lowered(lambda x: x * 2)) != step_digests.digest(lowered(lambda x: x * 3))
