"""The dotted paths that docs, configs, models, benchmarks and stored configs name as values.

Configs of users and of stored runs contain such paths, so each of them must resolve after the code has moved. The
golden list therefore only grows: a new text of the docs adds a path, and none is dropped.
"""

import ast
import importlib.util
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

from engine.config.schema import Target
from engine.config.target import resolve
from tests.surface.own import ROOT, TOPS

_FIRST = "|".join(["models", "benchmarks", "convoy_zoo", *TOPS])
_PATH = re.compile(rf"(?<![\w./-])(?:{_FIRST})(?:\.[A-Za-z_]\w*)+(?![\w/*]|{{)")
_IMPORT = re.compile(rf"^ *from ((?:{_FIRST})[\w.]*) import ([\w, ]+)", re.MULTILINE)
_CLASS = re.compile(r"\.[A-Z]\w*[a-z]\w*$")
_TARGET = re.compile(r"(?m)target['\"]?(?: ?[:=] ?)['\"]?([\w.]+)")
_EXAMPLES = {
    "convoy_zoo.models.forecaster.Forecast",
    "convoy_zoo.models.digits.Scans",
}  # a file of the reader; an error


def found() -> set[str]:
    """Returns the paths in all files of this repository that name some."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.ipynb"),
    ]
    paths = {path for page in pages for path in _of_page(_read(page))}
    for folder in ("configs", "models", "benchmarks", *TOPS):
        for file in (ROOT / folder).rglob("*.py"):
            paths |= set(_of_source(_read(file), is_engine=folder in TOPS))
    for pattern in ("tests/configs/golden/*.txt", "tests/fixtures/**/config.txt"):
        for file in ROOT.glob(pattern):
            paths |= {path for path in _TARGET.findall(_read(file)) if _PATH.fullmatch(path)}
    scripts = tomllib.loads(_read(ROOT / "pyproject.toml"))["project"]["scripts"]
    paths |= {script.replace(":", ".") for script in scripts.values()}
    return paths - _EXAMPLES


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _of_page(text: str) -> Iterator[str]:
    yield from (path for path in _PATH.findall(text) if not path.endswith(".md"))
    for module, names in _IMPORT.findall(text):
        yield from (f"{module}.{name.strip().split()[0]}" for name in names.split(",") if name.strip())


def _of_source(text: str, is_engine: bool) -> Iterator[str]:
    """Yields the paths in texts of a Python file; of the engine, only classes: its other texts name its modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if is_engine:
                yield from (path for path in _PATH.findall(node.value) if _CLASS.search(path))
            elif _PATH.fullmatch(node.value) and not node.value.endswith((".md", "_")):  # a page; a prefix of names
                yield node.value
            else:
                yield from (path for path in _TARGET.findall(node.value) if _PATH.fullmatch(path))


def check(path: str) -> None:
    """Raises ConfigError if the engine cannot import what a path names: a module, a class or a function."""
    if not _is_module(path):
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a deprecated path still resolves
            resolve(Target(target=path), "task")


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # a part in front of the last one is not a package
        return False
