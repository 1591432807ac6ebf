"""Targets: classes and functions that a config names by dotted path, with their arguments.

Imports the path, checks the arguments against the signature, and calls it. Arguments may contain further targets.
Callers list the arguments that the engine passes itself (`given`). An ImportError of a target becomes one sentence.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType, ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from engine.base.errors import ConfigError, FieldError, did_you_mean, near_names
from engine.base.user_errors import add_target_package
from engine.config import zoo
from engine.config.schema import Config, Evaluation, Target, field_names
from engine.config.zoo import current

INSTANCE = "engine.config.instances.Instance"
"""Target of the sections of objects that `engine.train` received."""
_PLAIN = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_NUMERIC = ("jax", "jaxlib", "numpy")  # packages whose classes accept numbers, as in the annotations of optax
_EXTRAS = {"sklearn": "examples"}  # the extra of pyproject.toml that installs a module


def resolve(target: Target, where: str) -> Callable[..., object]:
    """Imports the dotted path of `target` and returns what it names.

    Args:
        target: the section; `where` is its path in the config ("task", "evaluations.heldout.data").

    Raises:
        ConfigError: the path is empty, a part of it does not exist (named, with near names), its module fails to
            import (with file and line), or it is not callable.
    """
    field = f"{where}.target"
    if not target.target:
        advice = "Name a class or function by dotted path, such as 'convoy_zoo.models.digits.Digits'."
        raise FieldError(field, "is empty", advice)
    if (name := current(target.target)) != target.target:
        from engine.base.deprecation import warn_deprecated

        warn_deprecated(f"{field}: {target.target!r}", repr(name), removed="0.4.0")
    first, *rest = name.split(".")
    found = _import(first, target, field)
    if first != "engine":
        add_target_package(first)
    if found is None:
        shipped = [f"{first}.{name}" for name in zoo.modules(first)] if first in zoo.PACKAGES else []
        near = _similar_module(first) or did_you_mean(".".join(target.target.split(".")[:2]), shipped)
        raise FieldError(
            field,
            f"found {target.target!r}, but there is no module {first!r} to import",
            f"Run from the folder that holds {first}.py, add this folder to PYTHONPATH, or install the package.{near}",
        )
    path = first
    for part in rest:
        found, path = _member(found, path, part, target, field), f"{path}.{part}"
    if not callable(found):
        raise FieldError(field, f"{target.target!r} is a value ({found!r})", "Name a class or a function.")
    return found


def is_found(path: str) -> bool:
    """Whether the module of a dotted path is found; imports the packages that contain it, but not the module."""
    first, *rest = path.split(".")
    try:
        if importlib.util.find_spec(first) is None:
            return False
        if len(rest) < 2 or importlib.util.find_spec(f"{first}.{rest[0]}") is not None:
            return True
        return hasattr(sys.modules[first], rest[0])
    except ModuleNotFoundError as error:  # the first part is a module, not a package
        return error.name == f"{first}.{rest[0]}"
    except Exception:  # the user's code may raise anything; `resolve` reports it
        return True


def _similar_module(name: str) -> str:
    """Suggests a module with almost this name, which is not one of Python's own: these hold no Tasks and sources."""
    names = {module.name for module in pkgutil.iter_modules()} - sys.stdlib_module_names
    near = near_names(name, sorted(names), cutoff=0.8)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _import(name: str, target: Target, field: str) -> ModuleType | None:
    """Imports module `name`; None when it does not exist, ConfigError when it exists and fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise _import_failed(name, error, target, field) from error
    except Exception as error:
        raise _import_failed(name, error, target, field) from error


def _import_failed(name: str, error: Exception, target: Target, field: str) -> ConfigError:
    if isinstance(error, ImportError):
        return import_error(error, target.target, field)
    line = f" ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else line_of(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return FieldError(
        field,
        f"found {target.target!r}, but importing {name} failed: {type(error).__name__}: {text}{line}",
        "Correct it there.",
    )


def line_of(error: BaseException) -> str:
    """Returns ` (file:line)` of the innermost frame outside this file and the import system."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if "importlib" not in filename and filename != __file__:
            line = f" ({filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return line


def import_error(error: ImportError, name: str, field: str) -> FieldError:
    """Returns the ConfigError for an ImportError of the author's code: install a package, or correct the import.

    Args:
        error: what the code raised.
        name: the dotted path of the code, and `field` the field of the config that names it.
    """
    missing, line = error.name, line_of(error)
    if missing is None:  # raised by the author's own code, whose text says what to do
        return FieldError(field, f"{name} cannot be used{line}", str(error))
    if not isinstance(error, ModuleNotFoundError):
        advice = "Correct the import, or install a version of the package that it works with."
        return FieldError(field, f"an import of {name} failed{line}: {error}", advice)
    package = missing.partition(".")[0]
    if _is_installed(package):
        problem = f"{name} imports {missing!r}, which does not exist{line}"
        return FieldError(field, problem, f"Correct the import. The package {package!r} was found.")
    if extra := _EXTRAS.get(package):
        from engine.base.extras import install_command

        advice = f"It comes with the extra {extra!r}: {install_command(extra)}."
    else:
        advice = "Install the package that provides it, or correct the import."
    return FieldError(field, f"{name} needs the module {missing!r}, which is not installed{line}", advice)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module of tests or notebooks that was made by hand
        return True


def _member(owner: Any, path: str, part: str, target: Target, field: str) -> object:
    """The attribute or submodule `part` of what `path` names."""
    if hasattr(owner, part):
        return getattr(owner, part)
    is_package = isinstance(owner, ModuleType) and hasattr(owner, "__path__")
    if is_package and (module := _import(f"{path}.{part}", target, field)):
        return module
    names = {name for name in dir(owner) if not name.startswith("_")}
    if is_package:
        names |= {module.name for module in pkgutil.iter_modules(owner.__path__)}
    near = did_you_mean(part, names)
    kind = "Package" if is_package else "Module" if isinstance(owner, ModuleType) else type(owner).__name__.capitalize()
    listed = f" It has: {', '.join(sorted(names))}." if 0 < len(names) <= 20 else ""
    raise FieldError(
        field, f"found {target.target!r}, but {path} has no {part!r}", f"{kind} {path} was found.{near}{listed}"
    )


def check(target: Target, where: str, given: Collection[str] = ()) -> None:
    """Checks the arguments of `target` against the signature of what it names.

    Args:
        target: the section, `where` is its path in the config.
        given: names of the arguments that the engine passes itself.

    Raises:
        ConfigError: an argument that is not taken, is passed by the engine, is missing, or is of another type than
            an annotation of plain parts (int, float, bool, str, None, Literal, their unions) allows.
    """
    if (parameters := parameters_of(resolve(target, where))) is None:
        return
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in target.arguments.items():
        path = f"{where}.{name}"
        if name in given:
            raise FieldError(path, f"is passed to {target.target} by the engine", "Remove it from the config.")
        if name in named:
            _check_type(path, value, named[name], target)
        elif not takes_any:
            raise _not_taken(target, where, name, [name for name in named if name not in given])
        for inner, inner_path in _inner(value, path):
            check(inner, inner_path)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in target.arguments and name not in given:
            raise FieldError(
                f"{where}.{name}",
                f"is missing, {target.target} needs it",
                f"Set it with --config.{where}.{name}=VALUE. It takes: {_signature_text(named, given)}.",
            )


def user_targets(config: Config) -> dict[str, Target]:
    """Returns dotted path -> section of the Task, the data, the hooks and the trackers: what only the user knows."""
    evaluations = {f"evaluations.{name}.data": evaluation.data for name, evaluation in config.evaluations.items()}
    hooks = {f"hooks.{name}": hook for name, hook in config.hooks.items()}
    trackers = {f"log.trackers.{name}": tracker for name, tracker in config.log.trackers.items()}
    return {"task": config.task, "data": config.data, **evaluations, **hooks, **trackers}


def target_names(config: Config) -> list[str]:
    """Returns the dotted paths of all targets of a config that the user writes, the Task first.

    For an object that was passed to `engine.train`, it is the path of its class.
    """
    slices = (section for evaluation in config.evaluations.values() for section in evaluation.slices.values())
    sections = (*user_targets(config).values(), *slices)
    found = [str(s.arguments["type"]) if s.target == INSTANCE else s.target for s in sections]
    return found + tag_functions(config.evaluations)


def tag_functions(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Returns the dotted paths of functions in the tags of evaluations. An entry with a dot in its name is like one."""
    tags = (tag for evaluation in evaluations.values() for tag in evaluation.tags.values())
    return [tag for tag in tags if isinstance(tag, str) and "." in tag]


def check_targets(config: Config) -> None:
    """Imports every target of a config and checks its arguments. Initializes no device.

    Raises:
        ConfigError: a name that does not exist, or an argument that the target does not take.
    """
    for path, section in user_targets(config).items():
        check(section, path)
    check(config.optimizer, "optimizer", given=("learning_rate",))
    for name, group in config.optimizer.groups.items():
        section = config.optimizer.of_group(name)
        group = dataclasses.replace(group, target=section.target, arguments=section.arguments)
        check(group, f"optimizer.groups.{name}", given=("learning_rate",))
    for name, evaluation in config.evaluations.items():
        for key, section in evaluation.slices.items():
            where = f"evaluations.{name}.slices.{key}"
            check(section, where, given=first_parameter(section, where))


def parameters_of(function: Callable[..., object]) -> Mapping[str, inspect.Parameter] | None:
    """Returns the parameters by name; None for builtins without a signature: their call checks."""
    try:
        plain = inspect.signature(function)
    except ValueError:
        return None
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # string annotations may use names that only type checkers see
        return plain.parameters


def first_parameter(target: Target, where: str) -> list[str]:
    """Returns the name of the first parameter of what a target names, in a list; [] if it is not known."""
    return list(parameters_of(resolve(target, where)) or ())[:1]


def _not_taken(target: Target, where: str, name: str, arguments: list[str]) -> FieldError:
    fields = [field for field in field_names(type(target)) if field != "target"]
    near = did_you_mean(name, [*arguments, *fields, "target"])
    takes = f"It takes: {', '.join(arguments)}." if arguments else "It takes no arguments."
    engine = f" Fields of the engine here: {', '.join(fields)}." if fields else ""
    return FieldError(f"{where}.{name}", f"{target.target} takes no such argument", f"{takes}{engine}{near}")


def _signature_text(named: Mapping[str, inspect.Parameter], given: Collection[str]) -> str:
    texts = []
    for name, parameter in named.items():
        if name not in given:
            texts.append(name if parameter.default is parameter.empty else f"{name}={parameter.default!r}")
    return ", ".join(texts)


def _check_type(path: str, value: object, parameter: inspect.Parameter, target: Target) -> None:
    """Compares a value with an annotation whose parts are all plain; other annotations are not checked."""
    wanted = _alternatives(parameter.annotation)
    takes = [_takes(alternative, value) for alternative in wanted]
    if None in takes or any(takes) or (value is None and parameter.default is None):
        return
    numbers = any(map(_is_numeric, wanted))
    texts = dict.fromkeys(
        _text(alternative) for alternative in wanted if not (numbers and alternative in (int, float, bool))
    )
    literals = [alternative for alternative in wanted if isinstance(alternative, str)]
    near = did_you_mean(value, literals) if isinstance(value, str) else ""
    allowed = f"{target.target} takes {' or '.join(texts)}"
    raise FieldError(path, f"found {value!r}, {allowed}", f"Change it in the config.{near}")


def _alternatives(annotation: object) -> list[object]:
    """The types and values that an annotation allows: the parts of a union, the values of a Literal."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [alternative for part in get_args(annotation) for alternative in _alternatives(part)]
    if origin is Literal:
        return list(get_args(annotation))
    # A string annotation that is not a Literal value has names that could not be resolved.
    return [None if annotation is NoneType else object if isinstance(annotation, str) else annotation]


def _takes(alternative: object, value: object) -> bool | None:
    """Whether an alternative allows a value; None if that cannot be decided."""
    if alternative is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(alternative, type) and alternative in _PLAIN:
        return isinstance(value, alternative) and (alternative is bool or not isinstance(value, bool))
    if _is_numeric(alternative):
        return value is not None and not isinstance(value, str)
    if get_origin(alternative) is Callable:
        return None if isinstance(value, Mapping) else False  # a target inside the arguments may build a function
    if alternative is None or isinstance(alternative, str | int):  # bool is a subclass of int
        return type(value) is type(alternative) and value == alternative
    return None


def _is_numeric(alternative: object) -> bool:
    return alternative is complex or (
        isinstance(alternative, type) and alternative.__module__.partition(".")[0] in _NUMERIC
    )


def _text(alternative: object) -> str:
    if get_origin(alternative) is Callable:
        return "a function"
    return "a number" if _is_numeric(alternative) else _PLAIN.get(alternative) or repr(alternative)


def build(target: Target, where: str, **given: Any) -> Any:
    """Imports, checks and calls `target` with its arguments and with those that are `given`; returns the result.

    A dictionary with a text `target` among or inside the arguments is a target too, and is built first. The callee gets
    copies in ordinary dictionaries: the read-only mappings of a Config stay with the config.

    Raises:
        ConfigError: as `check`, or the call raises an ImportError.
    """
    check(target, where, given)
    arguments = {name: _to_plain(value, f"{where}.{name}") for name, value in target.arguments.items()}
    function = resolve(target, where)
    try:
        return function(**arguments, **given)
    except ImportError as error:
        raise import_error(error, target.target, f"{where}.target") from error


def _to_plain(value: object, path: str) -> object:
    """A copy of a config value in ordinary containers, with the targets inside it built."""
    if inner := _as_target(value):
        return build(inner, path)
    if isinstance(value, MappingProxyType | dict):
        return {key: _to_plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_to_plain(item, f"{path}.{number}") for number, item in enumerate(value))
    return value


def _inner(value: object, path: str) -> Iterator[tuple[Target, str]]:
    """Yields each outermost target inside an argument, and its path in the config."""
    if inner := _as_target(value):
        yield inner, path
    elif isinstance(value, MappingProxyType | dict):
        for key, item in value.items():
            yield from _inner(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _inner(item, f"{path}.{number}")


def _as_target(value: object) -> Target | None:
    """The target that a dictionary among the arguments describes, if it is one."""
    if not isinstance(value, MappingProxyType | dict) or not isinstance(value.get("target"), str):
        return None
    return Target(target=value["target"], arguments={key: item for key, item in value.items() if key != "target"})
