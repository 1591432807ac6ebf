"""Loads a space from a Python file or a dotted module that defines `get_space()`."""

import importlib
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from engine.base.errors import ConfigError, ConvoyError, did_you_mean

ADVICE = "It returns a dict: setting -> domain, such as {'optimizer.learning_rate': log(1e-4, 1e-2)}"


def load_domains(reference: str) -> Mapping[str, object]:
    """Returns what `get_space()` of a file or module returns.

    Raises:
        ConfigError: no such file or module, its code fails (with the line), or it returns no dict.
    """
    path = Path(os.path.expanduser(reference))
    if (reference.endswith(".py") or os.sep in reference) and not path.is_file():
        files = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--space={reference}: there is no such file.{did_you_mean(path.name, files)}")
    for folder in (str(path.parent.absolute()), os.getcwd()):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        names = runpy.run_path(str(path)) if path.is_file() else vars(importlib.import_module(reference))
        function = names.get("get_space")
        if not callable(function):
            near = did_you_mean("get_space", [name for name, value in names.items() if callable(value)])
            raise ConfigError(f"defines no get_space().{near} {ADVICE}.")
        found = function()
    except ConvoyError as error:
        raise ConfigError(f"--space={reference}{_line(error, path)}: {error}") from None
    except SyntaxError as error:
        raise ConfigError(f"--space={reference}: line {error.lineno}: {error.msg}.") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ConfigError(f"--space={reference}{_line(error, path)}: {text}. Correct it there.") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"--space={reference}: get_space() returned {found!r}. {ADVICE}.")
    return found


def _line(error: BaseException, path: Path) -> str:
    """Returns the line of the file in which an error began, or nothing for a module."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
