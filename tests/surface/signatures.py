"""The public names of a module with their signatures, as text: functions, and classes with their public members.

Members of base classes of this repository are listed with the class that inherits them. The text names no modules, and
no private classes: these are `_` in annotations.
"""

import ast
import dataclasses
import enum
import functools
import inspect
from collections.abc import Container, Iterator, Mapping
from types import ModuleType
from typing import Any

from tests.surface.own import is_own
from tests.surface.source_text import (
    annotation_text,
    annotations_of,
    class_node,
    defaults_of,
    function_node,
    value_text,
)

# Special methods that users neither call nor implement.
INTERNAL = {"__init__", "__post_init__", "__new__", "__reduce__", "__getstate__", "__setstate__", "__del__", "__repr__"}
INTERNAL |= {"__init_subclass__", "__getattr__", "__setattr__", "__delattr__", "__dir__", "__str__", "__sizeof__"}
# Base classes with the defaults of all optional members, which are public where a class defines them.
DEFAULTS = {"BaseSource", "BaseStream"}
WIDTH = 110  # columns; a longer signature has a line for each parameter, so that a diff shows the changed one


def module_text(objects: Mapping[str, Any], public: Container[str]) -> str:
    """Returns a block of lines for each name, in alphabetical order; `public` are the names of base classes to list."""
    return "\n".join(_object_text(name, value, public) for name, value in sorted(objects.items()))


def _object_text(name: str, value: Any, public: Container[str]) -> str:
    """Returns the lines of a function, a class, or a module, of which only the name is listed."""
    if isinstance(value, ModuleType):
        return f"module {name}\n"
    if isinstance(value, type):
        return "\n".join(_class_lines(name, value, public)) + "\n"
    return f"def {name}{_signature(value)}\n"


def _class_lines(name: str, cls: type, public: Container[str]) -> Iterator[str]:
    named = (base for base in cls.__bases__ if base is not object)
    bases = [base.__name__ for base in named if not is_own(base.__module__) or base.__name__ in public]
    yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    if issubclass(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
    elif (creates := _constructor(cls)) is not None:
        yield from (f"    {line}" for line in f"def __init__{creates}".splitlines())
    members: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_own(base.__module__) and base.__name__ not in DEFAULTS:
            members |= _members(base, cls)
    for _, text in sorted(members.items()):
        yield from (f"    {line}" for line in text.splitlines())


def _constructor(cls: type) -> str | None:
    """Returns the signature of a class without self; None for one that inherits its constructor from a library."""
    owner = next((base for base in cls.__mro__ if "__init__" in vars(base)), object)
    if not is_own(owner.__module__) or not is_own(vars(owner)["__init__"].__module__):  # typing has that of protocols
        return None
    own = None if dataclasses.is_dataclass(owner) else function_node(vars(owner)["__init__"])
    return _signature(cls) if own is None else _signature(vars(owner)["__init__"], skip=1)


def _members(base: type, cls: type) -> dict[str, str]:
    """Returns name -> line of the public members that the source of a class declares."""
    found: dict[str, str] = {}
    for node in class_node(base).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _field(cls, node.target.id, annotation_text(node.annotation), node.value)
        elif isinstance(node, ast.Assign) and not issubclass(cls, enum.Enum):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _field(cls, target.id, "", node.value)
        elif isinstance(node, ast.FunctionDef):
            if node.name in ("__init__", "__post_init__"):
                found = {**_attributes(node), **found}
            if node.name not in INTERNAL:
                found[node.name] = _method(node.name, vars(base)[node.name])
    return {name: line for name, line in found.items() if not name.startswith("_") or name.endswith("__")}


def _field(cls: type, name: str, annotation: str, value: ast.expr | None) -> str:
    """Returns the line of a class attribute; the default of a dataclass field is that of the dataclass."""
    text = f"{name}: {annotation}" if annotation else name
    fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    if name in fields:
        default = fields[name].default
        if (factory := _factory(fields[name])) is not None:
            return f"{text} = {factory}"
        return text if default is dataclasses.MISSING else f"{text} = {_value(default, value)}"
    return text if value is None else f"{text} = {_value(getattr(cls, name, None), value)}"


def _factory(field: dataclasses.Field) -> str | None:
    """Returns the text of the factory of a default; None for a field without one."""
    factory = field.default_factory
    return None if factory is dataclasses.MISSING else f"{getattr(factory, '__name__', 'factory')}()"


def _attributes(init: ast.FunctionDef) -> dict[str, str]:
    """Returns name -> line of the public attributes that a constructor assigns, with a type where one is written."""
    found, types = {}, annotations_of(init)
    for node in ast.walk(init):
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        pairs = [(target, node.value) for target in targets]
        if isinstance(targets[0], ast.Tuple):
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [None] * len(targets[0].elts)
            pairs = list(zip(targets[0].elts, values, strict=True))
        for target, value in pairs:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                written = node.annotation if isinstance(node, ast.AnnAssign) else None
                given = types.get(value.id) if isinstance(value, ast.Name) else None
                kind = annotation_text(written or given)
                found[target.attr] = f"{target.attr}: {kind}" if kind else target.attr
    return found


def _method(name: str, value: Any) -> str:
    if isinstance(value, property | functools.cached_property):
        function = value.fget if isinstance(value, property) else value.func
        node = function_node(function) if function is not None else None
        kind = annotation_text(node.returns) if node is not None else ""
        settable = isinstance(value, functools.cached_property) or value.fset is not None
        return f"property {name}{f': {kind}' if kind else ''}{' (settable)' if settable else ''}"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {name}{_signature(value.__func__, skip=isinstance(value, classmethod))}"
    return f"def {name}{_signature(value, skip=1)}"


def _signature(function: Any, skip: int = 0) -> str:
    """Returns `(name: Type = default, *, ...) -> Type`, without the first `skip` parameters."""
    node = None if isinstance(function, type) else function_node(function)
    types, values = ({}, {}) if node is None else (annotations_of(node), defaults_of(node))
    made: dict[str, str | None] = {}
    if isinstance(function, type):
        if dataclasses.is_dataclass(function):
            made = {field.name: _factory(field) for field in dataclasses.fields(function)}
        for base in reversed(function.__mro__):
            if is_own(base.__module__):
                for inner in class_node(base).body:
                    if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                        types[inner.target.id] = inner.annotation
    parts, kinds, starred = [], inspect.Parameter, False
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    for i, parameter in enumerate(parameters):
        if parameter.kind is kinds.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or parameter.kind in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL)
        stars = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind = annotation_text(types.get(parameter.name))
        text = f"{stars}{parameter.name}{f': {kind}' if kind else ''}"
        if parameter.default is not parameter.empty:
            text += f" = {made.get(parameter.name) or _value(parameter.default, values.get(parameter.name))}"
        parts.append(text)
        after = parameters[i + 1].kind if i + 1 < len(parameters) else None
        if parameter.kind is kinds.POSITIONAL_ONLY and after is not kinds.POSITIONAL_ONLY:
            parts.append("/")
    returns = annotation_text(types.get("return"))
    end = f" -> {returns}" if returns else ""
    line = f"({', '.join(parts)}){end}"
    return line if len(line) <= WIDTH else "\n".join(["(", *(f"    {part}," for part in parts), f"){end}"])


def _value(value: object, node: ast.expr | None) -> str:
    """Returns the text of plain data, and of other values the text of the source or the name."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if _is_plain(value):
        return repr(value)
    if node is not None:
        return value_text(node)
    return getattr(value, "__name__", None) or f"{type(value).__name__}(...)"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return _is_plain([*value.keys(), *value.values()])
    return value is None or isinstance(value, bool | int | float | str | bytes)
