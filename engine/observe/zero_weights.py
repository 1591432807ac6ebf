"""Warns about steps whose examples all have weight 0: their gradient is 0, so nothing is learned from them."""

from collections.abc import Callable

import numpy as np


class ZeroWeights:
    """Counts such steps in one attempt.

    Args:
        steps_per_epoch: steps in a row after which a whole epoch had no weight.
        on_message: called with a warning for the first such step, at each doubling of their number, and once if a whole
            epoch had no weight.
    """

    def __init__(self, steps_per_epoch: int, on_message: Callable[[str], None]):
        self._steps_per_epoch, self._say = steps_per_epoch, on_message
        self._count = self._in_a_row = 0
        self._report_at = 1

    def add_results(self, first: int, values: np.ndarray) -> None:
        """Processes the metrics `[steps, names, (sum, weight)]`, the loss first, of the batches from `first` on."""
        weights = values[:, 0, 1]
        if weights.all():  # the usual case
            self._in_a_row = 0
            return
        for step, weight in enumerate(weights, first + 1):
            self._in_a_row = 0 if weight else self._in_a_row + 1
            if not weight:
                self._count += 1
                self._report(step)

    def _report(self, step: int) -> None:
        if self._in_a_row == self._steps_per_epoch:
            self._say(
                f"warning: step {step}: every weight of the loss was 0 for a whole epoch, so the model learns nothing. "
                "Check the mask (where) that the loss passes to Loss.of."
            )
        elif self._count >= self._report_at:
            self._report_at = 2 * self._count
            self._say(
                f"warning: step {step}: every weight of the loss is 0 in this batch, so its loss and gradient count as "
                f"0; momentum and weight decay still act ({self._count} such step{'s' * (self._count > 1)} so far)"
            )
