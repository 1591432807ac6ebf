"""Annotations and defaults as the source writes them, without the modules of names: `np.ndarray` is `ndarray`.

Evaluated annotations differ between versions of Python and of libraries: `npt.ArrayLike` is a union of many types.
"""

import ast
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

type Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Plain(ast.NodeTransformer):
    """Replaces `package.Name` by `Name`, and annotations in quotes by their content."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name("_") if node.id.startswith("_") else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value).split(".")[-1] == "Literal":  # its texts are values
            return ast.Subscript(self.visit(node.value), node.slice)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node


class _Unqualified(ast.NodeTransformer):
    """Replaces `package.Name` by `Name` in values."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr)


def annotation_text(node: ast.expr | None) -> str:
    """Returns the text of an annotation, or an empty text without one."""
    return "" if node is None else ast.unparse(_Plain().visit(_copy(node)))


def value_text(node: ast.expr) -> str:
    """Returns the text of an expression."""
    return ast.unparse(_Unqualified().visit(_copy(node)))


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


@functools.cache
def _functions(file: str) -> dict[int, Function]:
    """Returns the first line of each function of a file, decorators included, as code objects name it."""
    nodes = (node for node in ast.walk(_tree(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {min(inner.lineno for inner in (node, *node.decorator_list)): node for node in nodes}


def function_node(function: Callable[..., object]) -> Function | None:
    """Returns the syntax tree of a function; None if it has no source, such as a method made by a dataclass."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    return _functions(code.co_filename).get(code.co_firstlineno)


def class_node(cls: type) -> ast.ClassDef:
    """Returns the syntax tree of a class of this repository."""
    body: list[ast.stmt] = _tree(str(sys.modules[cls.__module__].__file__)).body
    node = None
    for name in cls.__qualname__.split("."):
        node = next(found for found in body if isinstance(found, ast.ClassDef) and found.name == name)
        body = node.body
    assert node is not None
    return node


def annotations_of(node: Function) -> dict[str, ast.expr]:
    """Returns parameter -> annotation, and "return"."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    found = {one.arg: one.annotation for one in every if one is not None and one.annotation is not None}
    return found | ({"return": node.returns} if node.returns is not None else {})


def defaults_of(node: Function) -> dict[str, ast.expr]:
    """Returns parameter -> default."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    found = dict(zip([one.arg for one in positional][::-1], arguments.defaults[::-1], strict=False))
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return found | {one.arg: default for one, default in named if default is not None}
