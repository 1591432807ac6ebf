"""Base classes of the engine's errors, and suggestions for misspelt names.

The message of a `ConvoyError` states where it happened, what was found, what is allowed and what to do next.
`exit_code` is a value of `engine/cluster/exit_status.py`; the default 1 means an error of the user.
"""

import difflib
import os
import traceback
from collections.abc import Iterable

TRACEBACK_VARIABLE = "CONVOY_TRACEBACK"
"""Environment variable that makes errors show their traceback."""


def shows_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


class EngineEnd(BaseException):
    """Base of everything that the engine raises on purpose; it states how the process and the run end.

    Errors are subclasses of ConvoyError. A request to stop is none, so that `except Exception` does not catch it
    (`loop/preemption.py`).
    """

    exit_code: int = 1  # of the process
    state = "failed"  # `state` in `status.json` of a run that ends with this error
    everywhere = False  # whether every process of the run raises it at the same step
    from_outside = False  # whether the failure came from outside the process, so that it does not count as a crash loop

    @property
    def kind(self) -> str:
        """Name of the error in front of its message."""
        return type(self).__name__

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython shows: a sentence, as the command line (`cluster/tracebacks.py`)."""
        if shows_traceback():
            return traceback.format_exception(self)
        return [f"{self.kind}: {self}"]


class ConvoyError(EngineEnd, Exception):
    """Base of every error that the engine raises on purpose."""


class ConfigError(ConvoyError):
    """A config, a command line or a combination of settings is invalid."""


class FieldError(ConfigError):
    """A ConfigError about one field; `origin` is the file and line, or the flag, where its value was written.

    Message: `train.totl: unknown field (configs/x.py:7). Did you mean train.total?`
    """

    def __init__(self, path: str, problem: str, advice: str, origin: str = ""):
        self.path, self.problem, self.advice, self.origin = path, problem, advice, origin
        where = f" ({origin})" if origin else ""
        super().__init__(f"{path}: {problem}{where}. {advice}".rstrip())

    @property
    def kind(self) -> str:
        """Always "ConfigError": the subclass is of no use to users."""
        return ConfigError.__name__

    def at(self, origin: str) -> "FieldError":
        """Returns the same error with this origin, or itself if it already has one."""
        return self if self.origin else type(self)(self.path, self.problem, self.advice, origin)

    def __reduce__(self):
        return type(self), (self.path, self.problem, self.advice, self.origin)


class UnknownFieldError(FieldError, AttributeError):
    """The schema has no such field. Also an AttributeError, so that `hasattr` works on a config."""


class TaskError(ConvoyError):
    """A Task, its model or its loss violates the protocol of `engine/training/task.py`."""


class DataError(ConvoyError):
    """A source, a record or a batch is unusable."""


class ShardingError(ConvoyError):
    """A mesh, a sharding rule and a parameter do not fit together."""


class CheckpointError(ConvoyError):
    """A checkpoint cannot be written, found or restored."""


class RunError(ConvoyError):
    """A run directory cannot be used as asked."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean X or Y?` with the most similar `names`, or an empty string if none is similar."""
    near = near_names(name, names)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def near_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Returns at most two of `names` that are similar, or of which `name` is the initials: lr of learning_rate."""
    names = list(dict.fromkeys(names))
    initials = [full for full in names if len(name) > 1 and name == "".join(word[:1] for word in full.split("_"))]
    return (initials + difflib.get_close_matches(name, names, n=2, cutoff=cutoff))[:2]


def first_line(error: BaseException) -> str:
    """Returns the first line of an error of JAX; the lines after it are stack traces and registers."""
    return (str(error).splitlines() or [""])[0][:300]
