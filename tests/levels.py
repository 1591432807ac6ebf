"""The levels of the packages of the engine, as engine/levels.bzl lists them."""

import ast
from pathlib import Path

TOP = Path(__file__).parents[1]


def groups() -> dict[str, list[dict[str, str]]]:
    """Returns group -> its levels, the lowest first; a level maps each package to what it is responsible for."""
    [value] = [
        node.value
        for node in ast.parse((TOP / "engine/levels.bzl").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUPS"
    ]
    return ast.literal_eval(value)


def levels() -> dict[str, int]:
    """Returns the level of each package, from 0."""
    return {
        package: level
        for level, packages in enumerate(packages for levels in groups().values() for packages in levels)
        for package in packages
    }
