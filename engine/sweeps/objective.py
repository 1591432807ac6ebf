"""Searches arguments of a function of the user, one trial after the other in this process."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from engine.base.errors import ConfigError, ConvoyError
from engine.config.schema import Plain
from engine.sweeps import study as attributes
from engine.sweeps.asking import Asking
from engine.sweeps.folder import SweepFolder
from engine.sweeps.space import as_plain
from engine.sweeps.study import Study, values_of
from engine.sweeps.trials import OUT_OF_MEMORY, kind_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Pruned(Exception):
    """Raised by `Trial.report` for a trial that the pruner ends."""


@dataclass(frozen=True)
class Trial:
    """What an objective receives.

    Attributes:
        number: number of the trial, from 0.
        values: name -> value of each argument that is searched.
        folder: a folder of this trial, which is the same after a restart: the workdir of a run, for example.
    """

    number: int
    values: Mapping[str, Any]
    folder: Path
    _report: Callable[[int, float], bool]

    def __getitem__(self, name: str) -> Any:
        """Returns the value of an argument."""
        return self.values[name]

    def report(self, step: int, value: float) -> None:
        """Reports an intermediate value. Raises Pruned, which the sweep catches, if the trial ends here."""
        if self._report(int(step), float(value)):  # Optuna's journal takes no numbers of NumPy
            raise Pruned


type Objective = Callable[[Trial], float]
"""Returns the value of a trial, which is searched."""


def search_function(
    objective: Objective, folder: SweepFolder, study: Study, asking: Asking, say: Callable[[str], None]
) -> None:
    """Runs the trials that are not finished. A trial that was running when the process was killed is run again.

    Args:
        objective: the function.
        folder: the folder of the sweep.
        study: Optuna's study.
        asking: creates trials, and decides which are pruned.
        say: called with sentences for the user.
    """
    for number, values, began in _trials(study, asking):
        path = folder.run(number, 0, 1)
        path.mkdir(parents=True, exist_ok=True)

        def report(step: int, value: float, number: int = number) -> bool:
            is_new = study.report(number, step, value)
            return is_new and asking.should_prune(number)

        trial = Trial(number, {name: as_plain(value) for name, value in values.items()}, path, report)
        found = {attributes.RUNS: [str(path.relative_to(folder.path))]}
        text = ""
        try:
            value = _value(objective(trial))
            study.complete(number, value, found | _seconds(began) | {attributes.RESULTS: [value]})
            text = f"{value:.6g}"
        except Pruned:
            study.prune(number, found | _seconds(began))
            text = "pruned"
        except Exception as error:
            problem = str(error) if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}".rstrip(": ")
            kind = OUT_OF_MEMORY if isinstance(error, MemoryError) else kind_of(problem)
            more = {attributes.PROBLEM: problem, attributes.KIND: kind}
            study.fail(number, found | _seconds(began) | more)
            text = f"{kind}: {problem}"
        say(f"trial {number} ({', '.join(f'{name}={value}' for name, value in values.items())}): {text}")


def _trials(study: Study, asking: Asking) -> Iterator[tuple[int, Mapping[str, Plain], float]]:
    """Yields number, values and start time of trials: those that a killed process has left, then new ones."""
    for frozen in study.recover():
        yield frozen.number, values_of(frozen), _start_time(frozen)
    while (asked := asking.ask()) is not None:
        yield *asked, time.time()


def _start_time(trial: "FrozenTrial") -> float:
    return trial.datetime_start.timestamp() if trial.datetime_start else time.time()


def _seconds(began: float) -> dict[str, float]:
    return {attributes.SECONDS: round(time.time() - began, 3)}


def _value(found: object) -> float:
    value = float(found) if isinstance(found, SupportsFloat) else math.nan
    if math.isnan(value):
        raise ConfigError(f"the objective returned {found!r}. Return a number.")
    return value
