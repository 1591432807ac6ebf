"""Errors that users read, and the search for the name that they meant.

Every error of the engine is a `ConvoyError`: a sentence that says where, what was found, what is allowed and
what to do, and the exit code that the command line ends with. The table of exit codes lives in
`engine/cluster/exit_status.py`; an error of the user is 1.
"""

import difflib
from collections.abc import Iterable


class ConvoyError(Exception):
    """Base of every error that the engine raises on purpose; `exit_code` is what the process ends with."""

    exit_code: int = 1
    state = "failed"  # what `status.json` calls a run that it ended
    everywhere = False  # whether every process of a run raises it at the same step
    from_outside = False  # whether others brought it about, so that it says nothing against starting again

    @property
    def kind(self) -> str:
        """What the error is called in front of its sentence."""
        return type(self).__name__


class ConfigError(ConvoyError):
    """A configuration, a command line or a combination of settings that cannot run."""


class FieldError(ConfigError):
    """A ConfigError about one field; `origin` says where it was written, as soon as that is known.

    Reads `train.totl: unknown field (configs/x.py:7). Did you mean train.total?`
    """

    def __init__(self, path: str, problem: str, advice: str, origin: str = ""):
        self.path, self.problem, self.advice, self.origin = path, problem, advice, origin
        where = f" ({origin})" if origin else ""
        super().__init__(f"{path}: {problem}{where}. {advice}".rstrip())

    @property
    def kind(self) -> str:
        """A reader has no use for the kinds of ConfigError."""
        return ConfigError.__name__

    def at(self, origin: str) -> "FieldError":
        """Returns the same error with its origin, if it has none yet."""
        return self if self.origin else type(self)(self.path, self.problem, self.advice, origin)

    def __reduce__(self):
        return type(self), (self.path, self.problem, self.advice, self.origin)


class UnknownFieldError(FieldError, AttributeError):
    """A field that the schema does not have; an AttributeError too, so that `hasattr` works on a config."""


class TaskError(ConvoyError):
    """A Task, its model or its loss breaks the author's protocol (`engine/training/task.py`)."""


class DataError(ConvoyError):
    """A source, a record or a batch that is not what the run needs."""


class ShardingError(ConvoyError):
    """A mesh, a rule or a parameter that do not fit together."""


class CheckpointError(ConvoyError):
    """A checkpoint that cannot be written, found or restored."""


class RunError(ConvoyError):
    """A run directory that cannot be used as asked."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean X or Y?` with the nearest of `names`, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """Returns the part of JAX's error texts that is for people; stacks and registers follow it."""
    return (str(error).splitlines() or [""])[0][:300]
