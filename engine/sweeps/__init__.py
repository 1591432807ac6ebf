"""Searches of settings with Optuna. Each trial is an ordinary run.

Names are imported on first use. `_MODULES` repeats the imports below, which only type checkers execute; a test
compares the two.
"""

from typing import TYPE_CHECKING

from engine import lazy_exports

if TYPE_CHECKING:
    from engine.sweeps.api import SearchOptions
    from engine.sweeps.domains import choice, integer, log, log_integer, uniform, when
    from engine.sweeps.objective import Trial
    from engine.sweeps.sweep import SweepResult

__all__ = ["SearchOptions", "SweepResult", "Trial", "choice", "integer", "log", "log_integer", "uniform", "when"]

_MODULES = {
    "engine.sweeps.api": ("SearchOptions",),
    "engine.sweeps.domains": ("choice", "integer", "log", "log_integer", "uniform", "when"),
    "engine.sweeps.objective": ("Trial",),
    "engine.sweeps.sweep": ("SweepResult",),
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
