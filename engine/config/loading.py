"""Loads a config and its overrides as a validated Config.

A *reference* is the argument of `--config`: the path of a Python file with `get_config()`, the dotted name of such a
module (`configs.digits`), or a run directory, whose `config.txt` is read. Any error in a config's code becomes a
ConfigError with file and line.
"""

import importlib
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import ml_collections

from engine.base.errors import ConfigError, ConvoyError, FieldError, did_you_mean
from engine.base.files import read_text
from engine.config import zoo
from engine.config.draft import Draft, draft_of
from engine.config.override import apply
from engine.config.schema import Config, Log
from engine.config.text import from_text
from engine.config.validation import validate

CONFIG_TEXT = "config.txt"
PREFIX = "--config."

_ENGINE_FOLDERS = (os.path.dirname(__file__), os.path.dirname(str(ml_collections.__file__)), "<frozen importlib")


def load(reference: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the Config that `reference` and the overrides describe. Builds nothing and imports no jax.

    Appends the folder of a config file (or the root of its package) and the current folder to sys.path, so that
    configs can import each other and targets can be imported.

    Args:
        reference: a file, a module or a run directory, as in the module's docstring.
        overrides: each "train.total=2 epochs".

    Raises:
        ConfigError: `reference` does not exist, its code fails (with the line), or a field or value is not allowed.
    """
    draft = _read(reference)
    apply(draft, overrides, PREFIX)
    return validate(draft, f"{_shown(reference)} and the command line" if overrides else _shown(reference))


def _read(reference: str) -> Draft:
    if re.match(r"[\w+.-]+://", reference):
        advice = f"load(str(engine.local_path({reference!r})))"
        raise ConfigError(f"{reference}: found the address of a bucket. Name its folder on this machine: {advice}.")
    path = Path(os.path.expanduser(reference))  # not Path.expanduser, which would expand "./~" too
    if path.is_dir():
        path = path / CONFIG_TEXT
        if not path.is_file():
            raise ConfigError(f"{reference}: is a folder without {CONFIG_TEXT}, so no run. {_configs_in(path.parent)}")
    if path.is_file() and path.suffix == ".txt":
        try:
            text = read_text(path)
        except OSError as error:
            raise ConfigError(f"{_shown(path)}: cannot be read ({error.strerror or error}).") from error
        draft = draft_of(from_text(text, _shown(path)))
        # How one attempt was shown is not how the next one must be.
        draft.log.progress, draft.log.verbose = Log.progress, Log.verbose
        return draft
    if path.is_file() and path.suffix == ".py":
        return _from_file(path)
    if path.exists():
        raise ConfigError(f"{reference}: is no config. Name a Python file (.py), a module or a run directory.")
    if reference.endswith((".py", ".txt")) or "/" in reference or os.sep in reference:
        raise ConfigError(f"{reference}: there is no such file.{_near_file(path)} {_configs_in(path.parent)}".rstrip())
    return _from_module(reference)


def _near_file(path: Path) -> str:
    """Suggests an existing file with a similar name."""
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    if path.with_suffix(".py").is_file():
        return f" Did you mean {path.with_suffix('.py')}?"
    near = did_you_mean(path.name, [file.name for file in path.parent.iterdir() if file.suffix == ".py"])
    return near.replace("mean ", f"mean {path.parent}/", 1) if near and str(path.parent) != "." else near


def _configs_in(folder: Path) -> str:
    """Lists the files of a folder that define get_config."""
    if not folder.is_dir():
        return ""
    names = [file.name for file in sorted(folder.glob("*.py")) if _mentions_get_config(file)]
    where = "this folder" if folder == Path() else str(folder)
    return f"Configs in {where}: {', '.join(names)}." if names else f"There are no configs in {where}."


def _mentions_get_config(file: Path) -> bool:
    try:
        return file.is_file() and "get_config" in file.read_text(errors="replace")
    except OSError:
        return False


def _make_importable(folder: Path) -> str:
    """Appends the folder, or the root of its package, and the current folder to sys.path; returns the package."""
    packages: list[str] = []
    while (folder / "__init__.py").is_file():
        packages.insert(0, folder.name)
        folder = folder.parent
    for entry in (str(folder), os.getcwd()):
        if entry not in sys.path:
            sys.path.append(entry)
    return ".".join(packages)


def _from_file(path: Path) -> Draft:
    package = _make_importable(Path(os.path.abspath(path)).parent)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    module.__spec__ = ModuleSpec(f"{package}.{path.stem}" if package else path.stem, None)  # for relative imports
    shown = _shown(path)

    def run() -> object:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        return _get_config(module, shown)()

    return _draft(run, shown, path.stem)


def _from_module(reference: str) -> Draft:
    _make_importable(Path.cwd())
    reference = zoo.canonical(reference)

    def run() -> object:
        try:
            module = importlib.import_module(reference)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{reference}.".startswith(f"{error.name}."):
                raise
            raise _no_module(reference, error.name) from None
        return _get_config(module, reference)()

    return _draft(run, reference, reference.rpartition(".")[2])


def _no_module(reference: str, missing: str) -> ConfigError:
    """The error for a dotted reference of which `missing` is the first part that does not exist."""
    parent = missing.rpartition(".")[0]
    folders = list(sys.modules[parent].__path__) if parent in sys.modules else []
    files = [Path(folder) / f"{reference}.py" for folder in (".", "configs")]
    shipped = [f"configs.{name}" for name in zoo.modules("configs")]
    names = [f"{parent}.{file.stem}" for folder in folders for file in Path(folder).glob("[!_]*.py")]
    names = names if parent else [entry.name for entry in Path.cwd().iterdir() if entry.is_dir()]
    near = next((f" Did you mean {file}?" for file in files if file.is_file()), "")
    near = near or ("" if "." in reference else did_you_mean(f"configs.{reference}", shipped))
    near = near or did_you_mean(missing, names) or did_you_mean(reference, shipped)
    listed = _configs_in(Path(folders[0] if folders else "configs"))
    return ConfigError(f"{reference}: there is no module {missing!r} and no file of this name.{near} {listed}".rstrip())


def _get_config(module: types.ModuleType, shown: str) -> Callable[[], object]:
    function = getattr(module, "get_config", None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value)]
        near = did_you_mean("get_config", functions)
        raise ConfigError(f"{shown}: defines no get_config(). A config file has one, which returns the config.{near}")
    return function


def _draft(run: Callable[[], object], shown: str, stem: str) -> Draft:
    """Runs a config's code and returns its result as a new draft, named after the file unless it has a name."""
    try:
        returned = run()
        if not isinstance(returned, dict | ml_collections.ConfigDict | Config):
            advice = "Add 'return c' at its end" if returned is None else "Return what defaults() gave"
            raise ConfigError(f"{shown}: get_config() returned {returned!r}, which is no config. {advice}.")
        draft = draft_of(returned)
    except FieldError as error:
        raise error.at(_line_of(error) or shown) from None
    except ConvoyError:
        raise
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ConfigError(f"{_shown(error.filename or shown)}:{error.lineno}: {error.msg}: {line}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        advice = "The file is run as ordinary Python; correct it there."
        raise ConfigError(f"{_line_of(error) or shown}: {text}. {advice}") from error
    if not draft.name:
        draft.name = stem
    return draft


def _line_of(error: BaseException) -> str:
    """`file:line` of the innermost frame outside the engine and its libraries."""
    line, trace = "", error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(_ENGINE_FOLDERS):
            line = f"{_shown(filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _shown(path: str | Path) -> str:
    """The path relative to the current folder if it lies below it. Links are not resolved."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
