"""Writes predictions in the format of a public benchmark, which is found by its name.

The entries that identify an example, such as poses in float64, do not pass through the devices: the primary reads each
example once more on the host.
"""

import importlib
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.prediction_files import PredictionFile, check_path, write_error
from engine.api.predictions import EXAMPLE, Columns, Predictor
from engine.base.errors import ConfigError, ConvoyError, DataError, TaskError, did_you_mean
from engine.base.files import temporary_path
from engine.base.user_errors import describe
from engine.data.source import source_name

PACKAGE = "engine.submissions"
"""A module for each format, which has a class `Format`."""
NO_FORMATS = ("files", "format")  # other modules there


def format_names() -> list[str]:
    """Returns the names of all formats, sorted."""
    package = importlib.import_module(PACKAGE)
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if found.name not in NO_FORMATS)


def find_format(name: str) -> Any:
    """Returns the class of a format, a `SubmissionFormat`. Raises ConfigError for an unknown name."""
    known = format_names()
    if name not in known:
        raise ConfigError(f"format = {name!r}: unknown. Formats: {', '.join(known)}.{did_you_mean(name, known)}")
    return importlib.import_module(f"{PACKAGE}.{name}").Format


def check_submission_file(path: Path | None, overwrite: bool, name: str, fields: Sequence[str]) -> None:
    """Raises ConfigError if predictions cannot be written to a file in the format `name`."""
    kind = find_format(name)
    if path is None:
        raise ConfigError(f"format = {name!r}: a format is written to a file. Set out=NAME{kind.suffix}.")
    if fields:
        raise ConfigError(f"fields = {', '.join(fields)}: only columns of .npz and .parquet. Leave out this or format.")
    if path.suffix != kind.suffix:
        raise ConfigError(f"{path}: the format {name} is written to a file that ends in {kind.suffix}. Rename it.")
    check_path(path, overwrite)


class SubmissionFile(PredictionFile):
    """A file in the format of a benchmark; see PredictionFile.

    Args:
        path: the file, after `check_submission_file`.
        name: name of the format.
        predictor: the predictions.

    Raises:
        TaskError: a prediction that the format needs is missing.
        DataError: the folder cannot be written to.
    """

    def __init__(self, path: Path, name: str, predictor: Predictor):
        super().__init__(path)
        kind = find_format(name)
        _check_predictions(name, kind.predictions, predictor.names)
        self._name, self._source, self._names = name, predictor.source, predictor.names
        self._unfinished = temporary_path(path)
        self._stack.callback(self._unfinished.unlink, missing_ok=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._stack.enter_context(open(self._unfinished, "wb"))  # noqa: SIM115
        except OSError as error:
            raise write_error(path, error) from error
        self._format = kind(self._file)

    def add(self, columns: Columns) -> None:
        for row, index in enumerate(columns[EXAMPLE].tolist()):
            prediction = {name: columns[name][row] for name in self._names}
            example = self._example(index)
            try:
                self._format.add(prediction, example)
            except OSError as error:
                raise write_error(self._path, error) from error

    def _example(self, index: int) -> Mapping[str, Any]:
        where = f"example {index} of {source_name(self._source)}"
        try:
            example = self._source[index]
        except ConvoyError:
            raise
        except Exception as error:
            raise DataError(f"{where}: cannot be read for the format {self._name}: {describe(error)}") from error
        entries: Mapping[str, str] = self._format.entries
        for entry, text in entries.items():
            if not isinstance(example, Mapping) or entry not in example:
                found = ", ".join(example) if isinstance(example, Mapping) else type(example).__name__
                raise DataError(
                    f"{where}: the format {self._name} needs the entry {entry!r}: {text}. Found: {found}. Add it in "
                    "the function that makes the dataset."
                )
        return example

    def _complete(self) -> None:
        self._format.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._unfinished, self._path)


def _check_predictions(name: str, needed: Mapping[str, str], found: Sequence[str]) -> None:
    for prediction, text in needed.items():
        if prediction not in found:
            raise TaskError(
                f"format = {name!r}: it needs the prediction {prediction!r} of Task.predict: {text}. Found: "
                f"{', '.join(found) or 'none'}. Return it under this name."
            )
