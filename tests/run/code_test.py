"""A run remembers where its code lies, at which commit, and with which packages."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import engine
from engine.run import code


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with the module `project_task`, which is imported."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "project_task.py").write_text("class Task: pass\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.syspath_prepend(folder)
    __import__("project_task")
    yield folder
    del sys.modules["project_task"]


def git(folder, *words):
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_folder_commit_and_changes_are_found(project, tmp_path):
    found = code.describe(["project_task.Task", "optax.adamw", "engine.ArraySource"], 3)
    assert found.folders == (str(project),)
    assert (found.commit, found.dirty, found.attempt) == (git(project, "rev-parse", "HEAD"), False, 3)
    assert found.packages["convoy"] == engine.__version__ and {"jax", "flax", "python"} <= found.packages.keys()
    (project / "new.txt").write_text("untracked files do not count")
    assert not code.describe(["project_task.Task"], 1).dirty
    (project / "project_task.py").write_text("class Task: changed = True\n")
    changed = code.describe(["project_task.Task"], 1)
    assert changed.dirty
    assert f"{project} at commit {found.commit[:12]} with uncommitted changes (convoy " in str(changed)
    path = tmp_path / "code.json"
    path.write_text(code.to_text(changed))
    assert code.read(path) == changed


def test_changed_file_whose_name_is_not_utf8_counts(project):
    (project / os.fsdecode(b"\xff.txt")).write_text("")
    git(project, "config", "core.quotePath", "false")
    git(project, "add", ".")
    assert code.describe(["project_task.Task"], 1).dirty


@pytest.mark.slow
def test_commit_is_kept_if_git_status_does_not_answer(project, tmp_path, monkeypatch):
    real, folder = shutil.which("git"), tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\ncase "$*" in *status*) exec sleep 60;; *) exec {real} "$@";; esac\n')
    (folder / "git").chmod(0o755)
    commit = git(project, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(code, "GIT_S", 2.0)
    found = code.describe(["project_task.Task"], 1)
    assert (found.commit, found.dirty) == (commit, None)
    assert f"at commit {commit[:12]} (uncommitted changes are unknown) (convoy" in str(found)
    path = tmp_path / "code.json"
    path.write_text(code.to_text(found))
    assert code.read(path) == found


def test_folder_without_a_repository_or_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    found = code.describe([], 1)
    assert (found.folders, found.commit, found.dirty) == ((), "", False)
    assert str(found).startswith("installed packages (convoy ")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"packages": 3}', '{"attempt": "x"}', "[" * 100_000])
def test_damaged_file_is_named(text, tmp_path):
    path = tmp_path / "code.json"
    assert str(code.read(path)) == ""  # a run of an older version
    path.write_text(text)
    assert str(code.read(path)).startswith(f"unknown folders ({path} is damaged: ")


def test_folder_of_a_package_is_the_one_that_holds_it(tmp_path, monkeypatch):
    (tmp_path / "project_package/inner").mkdir(parents=True)
    (tmp_path / "project_package/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("project_package")
    found = json.loads(code.to_text(code.describe(["project_package.tasks.Task"], 1)))
    assert found["folders"] == [str(tmp_path)]
    del sys.modules["project_package"]
