"""Asks Optuna for the next trial of a sweep, and whether a trial is pruned."""

import json
import random
from typing import TYPE_CHECKING, Any

from engine.config.schema import Plain
from engine.sweeps.folder import Definition
from engine.sweeps.space import Space
from engine.sweeps.study import Study, make_pruner, make_sampler, values_of

if TYPE_CHECKING:
    import optuna


class Asking:
    """Creates the trials of a sweep.

    Args:
        definition: the definition of the sweep.
        space: its space.
        study: Optuna's study.
        parallel: whether several trials run at once.
    """

    def __init__(self, definition: Definition, space: Space, study: Study, parallel: bool):
        self._definition, self._space, self._study, self._parallel = definition, space, study, parallel
        self._points = _grid(space, definition.seed) if definition.sampler == "grid" else None
        self._pruner: optuna.pruners.BasePruner | None = None

    def ask(self) -> tuple[int, dict[str, Plain]] | None:
        """Creates the next trial and returns its number and its values; None if there are enough trials."""
        before = self._study.trials()
        if len(before) >= self._definition.trials:
            return None
        fixed = None
        if self._points is not None:
            used = [values_of(trial) for trial in before]
            point = next((point for point in self._points if point not in used), None)
            if point is None:
                return None
            fixed = self._space.params(point)
        sampler = make_sampler(self._definition.sampler, self._definition.seed, len(before), self._parallel)
        return self._study.ask(self._space.suggest, sampler, fixed)

    def should_prune(self, trial: int) -> bool:
        """Returns whether a trial ends at the value that was reported last."""
        if not self._definition.prune:
            return False
        if self._pruner is None:
            first = self._definition.rung or self._study.first_step()
            self._pruner = make_pruner(self._definition.prune, first, self._definition.factor)
        return self._study.should_prune(trial, self._pruner)


def _grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Returns the points of a grid as JSON gives them back, in random order.

    In ascending order, each trial would be better than those before it up to the best one, and none would be pruned.
    """
    points = json.loads(json.dumps(space.grid()))
    random.Random(seed).shuffle(points)
    return points
