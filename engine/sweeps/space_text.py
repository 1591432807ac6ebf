"""Parses the text of a domain, such as `log(1e-4, 1e-2)`. Nothing is evaluated: only known calls of literals pass."""

import ast
import inspect
from typing import Any, NoReturn

from engine.base.errors import ConfigError, did_you_mean
from engine.sweeps.domains import FORMS, FUNCTIONS, Domain

_ELSEWHERE = {  # names of other libraries
    "loguniform": "log", "log_uniform": "log", "float": "uniform", "int": "integer", "randint": "integer",
    "lograndint": "log_integer", "logint": "log_integer", "categorical": "choice",
}  # fmt: skip


def parse_domain(text: str, where: str) -> Domain:
    """Returns the domain that a text describes.

    Args:
        text: a call of a function of `domains.py`.
        where: the flag or the file and setting, for errors.

    Raises:
        ConfigError: anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(f"{where}: cannot be read. Write one of {', '.join(FORMS)}.{_quotes(text)}") from None
    try:
        return _call(tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _quotes(text: str) -> str:
    return " Texts need quotes: choice('relu', 'gelu')." if "choice" in text or "when" in text else ""


def _call(node: ast.expr) -> Domain:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ConfigError(f"found {ast.unparse(node)}, which is no domain. {_advice(node)}")
    name = node.func.id
    if name not in FUNCTIONS:
        near = did_you_mean(_ELSEWHERE.get(name.lower(), name), FUNCTIONS)
        raise ConfigError(f"found the function {name!r}.{near} Allowed: {', '.join(FORMS)}.")
    arguments = [_argument(name, item) for item in node.args]
    named = {word.arg or "**": _argument(name, word.value) for word in node.keywords}
    function = FUNCTIONS[name]
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError as error:
        form = next(form for form in FORMS if form.startswith(f"{name}("))
        points = ", and points=N for a grid" if "points" in inspect.signature(function).parameters else ""
        raise ConfigError(f"{ast.unparse(node)}: {error}. Write {form}{points}.") from None
    return function(*arguments, **named)


def _advice(node: ast.expr) -> str:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return f"Write one of {', '.join(FORMS)}."
    if isinstance(value, list | tuple) and value:
        return f"Did you mean choice({', '.join(map(repr, value))})?"
    return f"Write one of {', '.join(FORMS)}; set a single value with --config.NAME=VALUE."


def _argument(function: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if function == "when":
            return _call(node)
        _no_literal(node)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        _no_literal(node)


def _no_literal(node: ast.expr) -> NoReturn:
    text = ast.unparse(node)
    is_word = isinstance(node, ast.Name | ast.Attribute)
    advice = f"Write a text in quotes: {text!r}" if is_word else "Arguments are numbers, texts, True, False and None"
    raise ConfigError(f"found {text} as an argument. {advice}.")
