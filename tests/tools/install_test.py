"""tools/install: finds a Python that fits, or says in one sentence what to do. Programs that it calls are recorded."""

import os
import pathlib
import shutil
import subprocess

import pytest

INSTALLER = pathlib.Path("tools/install").resolve()
PYTHON = """case "$*" in
  "-c import sys"*) echo {minor} ;;
  "-c import ensurepip"*) exit {bare} ;;
  *) echo "$0 $*" >>"$RECORD"; [ "$2" != venv ] || {{ mkdir -p .venv/bin; cp "$0" .venv/bin/python; }} ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone/tools").mkdir(parents=True)
    shutil.copy(INSTALLER, tmp_path / "clone/tools")
    return tmp_path / "clone"


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def python(clone, name, minor, bare=0):
    """Makes a program that answers like the interpreter 3.minor; `bare` is 1 for one without venv and ensurepip."""
    program(clone.parent / "bin" / name, PYTHON.format(minor=minor, bare=bare))


def install(clone, *extras, **env):
    """Runs tools/install; returns its exit code, its output and the calls of other programs, without folders."""
    record, basics = clone.parent / "record", clone.parent / "basics"
    record.write_text("")
    basics.mkdir(exist_ok=True)
    for name in ("bash", "cp", "dirname", "env", "mkdir", "sh"):
        if not (basics / name).exists():
            (basics / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [clone / "tools/install", *extras],
        env={"PATH": os.pathsep.join([str(clone.parent / "bin"), str(basics)]), "RECORD": str(record), **env},
        cwd=clone.parent,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return (
        done.returncode,
        done.stdout + done.stderr,
        record.read_text().replace(f"{clone.parent}/bin/", "").splitlines(),
    )


def test_first_python_that_fits_makes_the_environment(clone):
    python(clone, "python3", 11)
    python(clone, "python3.12", 12)
    assert install(clone) == (
        0,
        "Convoy is installed in .venv. Activate it: . .venv/bin/activate\n",
        [
            "python3.12 -m venv .venv",
            ".venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .[examples]",
        ],
    )
    assert install(clone, "examples", "plot")[2] == [
        ".venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .[examples,plot]"
    ]


def test_without_a_python_that_fits_one_sentence_says_what_to_do(clone):
    python(clone, "python3", 11)
    python(clone, "python3.13", 13, bare=1)
    code, text, calls = install(clone)
    assert (code, calls) == (1, [])
    assert text == (
        "tools/install: Convoy needs Python 3.12 to 3.14 with the modules venv and ensurepip; "
        "found: 3.13 (python3.13), 3.11 (python3). Install one, such as Debian's python3.13-venv, or install uv "
        "(https://docs.astral.sh/uv), which fetches its own Python. Then call tools/install again.\n"
    )
    assert "found: no Python." in install(clone, CONVOY_PYTHON="no-such-python")[1]


def test_uv_fetches_a_python_where_none_fits(clone):
    python(clone, "python3", 11)
    program(clone.parent / "bin/uv", 'echo "uv $*" >>"$RECORD"\n')
    assert install(clone)[2] == [
        "uv venv --quiet --seed --python 3.13 .venv",
        "uv pip install --quiet --python .venv/bin/python --editable .[examples]",
    ]
    code, text, calls = install(clone, CONVOY_PYTHON="python3")  # no other one is taken in silence
    assert (code, calls) == (1, [])
    assert text == "tools/install: CONVOY_PYTHON is no Python 3.12 to 3.14; found: 3.11 (python3).\n"
    python(clone, "python3.12", 12, bare=1)  # uv needs neither venv nor ensurepip
    assert install(clone)[2][0] == "uv venv --quiet --seed --python python3.12 .venv"


def test_environment_of_another_python_is_kept_and_reported(clone):
    python(clone, "python3", 12)
    program(clone / ".venv/bin/python", PYTHON.format(minor=11, bare=0))
    assert install(clone) == (
        1,
        "tools/install: .venv is an environment of another Python. "
        "Delete it, or move it, and call tools/install again.\n",
        [],
    )
