"""The exit codes of the command line, and the code and the recorded state of every error of the engine."""

from collections.abc import Iterator

from engine.base.errors import EngineEnd
from engine.cluster.exit_status import ExitStatus, describe, is_retried
from tests.surface.own import import_all, is_own


def text() -> str:
    """Returns a line for each exit code, then one for each class of error."""
    import_all()
    codes = [f"{code.value} {code.name}: {describe(code)}{', retried' * is_retried(code)}" for code in ExitStatus]
    errors = {
        error.__name__: f"{error.__name__}: exit code {error.exit_code}, state {error.state}"
        for error in _classes(EngineEnd)
        if is_own(error.__module__)
    }
    return "\n".join([*codes, "", *(errors[name] for name in sorted(errors))]) + "\n"


def _classes(cls: type[EngineEnd]) -> Iterator[type[EngineEnd]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _classes(child)
