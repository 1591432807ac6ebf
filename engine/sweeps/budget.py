"""The budget of each run of a sweep: a length of training, a time, or a number of floating-point operations."""

import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from engine.base.duration import CLOCK_UNITS, DATA_UNITS, Duration
from engine.base.errors import ConfigError
from engine.sweeps import timeouts

_FLOPS = re.compile(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*flops?\s*", re.IGNORECASE)
_EXAMPLES = "2000 steps, 5 epochs, 10 minutes or 1e15 flops"


@dataclass(frozen=True)
class Budget:
    """How long each run of a sweep trains."""

    total: Duration | None = None
    """`train.total` of each run; None: another budget, or that of the config."""
    seconds: float | None = None
    """Time after which a run ends at its next evaluation."""
    flops: float | None = None
    """Floating-point operations of the steps of a run."""

    @classmethod
    def parse(cls, text: str | None) -> "Budget":
        """Parses "2000 steps", "5 epochs", "10 minutes" or "1e15 flops"; None is no budget.

        Raises:
            ConfigError: the text is none of them.
        """
        if not text:
            return cls()
        if match := _FLOPS.fullmatch(text):
            try:
                flops = float(match[1])
            except ValueError:
                flops = math.nan
            if not 1 <= flops < math.inf:
                raise ConfigError(f"--budget={text}: allowed is a number of FLOPs from 1. Write {_EXAMPLES}.")
            return cls(flops=flops)
        duration = Duration.parse(text, "--budget", (*DATA_UNITS, *CLOCK_UNITS, "flops"))
        if not duration.value:
            raise ConfigError(f"--budget={text}: allowed is more than 0. Write {_EXAMPLES}.")
        return cls(seconds=duration.seconds) if duration.is_clock else cls(total=duration)

    def overrides(self, reference: str, overrides: Sequence[str]) -> list[str]:
        """Returns the overrides that give a run this budget.

        Args:
            reference: the config.
            overrides: the overrides of this run, which decide how many FLOPs a step has.

        Raises:
            ConfigError: the config of the run is wrong, or JAX does not state the FLOPs of its step.
        """
        if self.total is not None:
            return [f"train.total={self.total}"]
        if self.flops is None:
            return []
        each = _flops_per_step(reference, tuple(overrides))
        steps = int(self.flops // each)
        if steps < 1:
            raise ConfigError(f"--budget={self.flops:g} flops: one step of this run has {each:.3g}. Give more.")
        return [f"train.total={steps} steps"]


@functools.cache
def _flops_per_step(reference: str, overrides: tuple[str, ...]) -> float:
    """Returns the FLOPs of a step. A child process builds the program, since the driver does not load JAX.

    It uses CPU devices, whatever this machine has: the others belong to the runs.
    """
    words = [sys.executable, "-m", "engine.sweeps.flops", reference, *overrides]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeouts.FLOPS_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--budget in flops: a step was not built in {timeouts.FLOPS_S:.0f} s.") from error
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(f"--budget in flops: the step of a run cannot be measured. {last}")
    found = json.loads(result.stdout.splitlines()[-1])
    if not found:
        raise ConfigError("--budget in flops: JAX does not state the FLOPs of this step. Give the budget in steps.")
    return float(found)
