"""The orders of a source whose rows continue drives: that of a training run, and that of an evaluation."""

from typing import TYPE_CHECKING

import numpy as np

from engine.data.sampling.sampler import Sampler, Sizes
from engine.data.source import BaseSource, Examples
from engine.sequences.row_plan import RowPlan

if TYPE_CHECKING:
    from engine.sequences.sequences import Sequences


class RowSampler(Sampler):
    """Order in which row b of each batch continues what it has read in the batch before.

    An address is window * 2, plus 1 for an idle row. Such a row repeats the last window that it has read.

    Args:
        source: the windows.
        plan: the rows.
    """

    is_sized = continues_rows = True

    def __init__(self, source: "Sequences", plan: RowPlan):
        self._source, self._plan = source, plan
        self.has_transform, self.vectorized = source.has_transform, source.source.has_take

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        segments, windows, idle = self._plan.locate(positions)
        firsts = np.where(segments >= 0, self._source.windows.firsts[segments], 0)
        return (firsts + windows) * 2 + idle

    def read(self, addresses: np.ndarray) -> Examples:
        return self._source.take(addresses >> 1)

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._source, address >> 1

    def weights(self, addresses: np.ndarray) -> np.ndarray:
        """Returns the weights of rows at addresses, float32 `[n]`: 0 for an idle row."""
        return (1 - (addresses & 1)).astype(np.float32)

    def random_numbers(self, positions: np.ndarray, addresses: np.ndarray) -> np.ndarray:
        """Returns the same number for all windows of a drive in an epoch, int64 `[n]`."""
        windows = self._source.windows
        return self._plan.epochs(positions) * len(windows.sizes) + windows.locate(addresses >> 1)[0]

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the rows at addresses: real frames, and space for frames, which is what a row costs."""
        real = self._source.windows.rows(addresses >> 1)[1].sum(axis=1) * (1 - (addresses & 1))
        space = np.full(len(addresses), self._source.windows.length)
        return Sizes(real, space, space.astype(np.float64))


class EvaluationOrder(RowSampler):
    """Order of an evaluation: each window once, in the rows of batches of so many rows.

    Args:
        source: the windows.
        batch_size: rows of a batch.
    """

    def __init__(self, source: "Sequences", batch_size: int):
        plan = RowPlan(source.windows.sizes, batch_size, seed=0, shuffle=False)
        super().__init__(source, plan)
        self.positions = plan.steps * batch_size
