"""Imports the libraries of file formats, which are optional extras of the package."""

import importlib
from types import ModuleType

from engine.base.errors import DataError


def import_extra(module: str, extra: str, files: str) -> ModuleType:
    """Returns an optional module.

    Args:
        module: dotted name, such as "pyarrow.parquet".
        extra: extra of convoy-engine that installs it, as in pyproject.toml.
        files: what needs it, for the error text, such as "TFRecord files".

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        if error.name is None or not module.startswith(error.name):  # a module that the library itself needs
            package = str(error.name)
        from engine.base.extras import install_command

        raise DataError(f"{files} need {package}, which is not installed: {install_command(extra)}.") from error
