"""The actor that does jobs on a node of a Ray cluster: one job at a time, while another thread answers about progress.

Ray is not imported here. The engine is imported after the variables of the environment are set, as in the process of
the command.
"""

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.base.errors import ConfigError, ConvoyError, DataError


@dataclass(frozen=True)
class Setup:
    """What a worker takes over from the process of the command.

    Attributes:
        folder: current folder, for relative paths.
        path: `sys.path`.
        environment: variables of the environment.
        files: files that the jobs read; the worker must see them.
    """

    folder: str
    path: Sequence[str]
    environment: Mapping[str, str]
    files: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """What a worker sends after a call.

    Attributes:
        pickled: the result, pickled, since Ray would make its arrays read-only; empty after an error.
        examples: number of examples that the job has reported.
        error: the error that ended the call.
    """

    pickled: bytes = b""
    examples: int = 0
    error: ConvoyError | None = None


class Worker:
    """Calls one function with each job. It has two threads: of `do`, and of `examples`."""

    def __init__(self):
        self._function: Callable[..., Any] | None = None
        self._lock = threading.Lock()
        self._examples = 0

    def start(self, setup: Setup, function: bytes) -> Answer:
        """Loads the function."""
        os.environ.update(setup.environment)
        sys.path += [folder for folder in setup.path if folder not in sys.path]
        try:
            os.chdir(setup.folder)
            _check_files(setup)
            self._function = pickle.loads(function)
        except ConvoyError as error:
            return Answer(error=error)
        except FileNotFoundError:
            return Answer(error=_unseen(setup.folder))
        except Exception as error:
            return Answer(error=DataError(f"{_described(error)} The function cannot be loaded on {_host()}."))
        return Answer()

    def do(self, job: bytes) -> Answer:
        """Returns the result of a job."""
        from engine.data.source_adapter import exits_reported

        assert self._function is not None
        with self._lock:
            self._examples = 0
        try:
            with exits_reported():
                result = self._function(pickle.loads(job), self._report)
            return Answer(pickle.dumps(result), self._examples)
        except BaseException as error:  # of every kind: the command raises it
            return Answer(error=_sendable(error))

    def examples(self) -> int:
        """Returns the number of finished examples of the current job."""
        return self._examples

    def _report(self, count: int) -> None:
        with self._lock:
            self._examples += count


def _sendable(error: BaseException) -> ConvoyError:
    """Returns an error that can be pickled, of the same class if it is one of the engine."""
    if isinstance(error, ConvoyError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:
            return ConfigError(str(error)) if isinstance(error, ConfigError) else DataError(str(error))
    return DataError(_described(error))


def _described(error: BaseException) -> str:
    from engine.base.user_errors import describe

    return describe(error)


def _check_files(setup: Setup) -> None:
    for path in setup.files:
        if not os.path.exists(path):
            raise _unseen(path)


def _unseen(path: str) -> DataError:
    return DataError(
        f"{path}: does not exist on {_host()}, a node of the Ray cluster. Put it on a disk that all nodes share under "
        "this path."
    )


def _host() -> str:
    return socket.gethostname()
