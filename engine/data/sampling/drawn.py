"""The shares of the tags among the examples that a run draws: of classes, or of the sources of a mixture.

They follow from the order of the run, which is a pure function of the position, so no process counts what it reads.
"""

import numpy as np

from engine.data.ragged.balanced import Balanced
from engine.data.sampling.sampler import make_sampler
from engine.data.source import BaseSource

MAX_TAGS = 32  # with more, metrics would hold little else
MAX_EXAMPLES = 2**17  # in a window: more are sampled by evenly spaced batches, since 1,000 examples take about 1 ms
PREFIX = "data_share/"
"""Beginning of the names of the metrics."""


class DrawnShares:
    """Shares of the tags by steps.

    Args:
        source: training examples.
        batch_size: rows of a global batch.
        seed: seed of the run.
        shuffle: whether the run shuffles the examples.
    """

    def __init__(self, source: BaseSource, *, batch_size: int, seed: int, shuffle: bool):
        while isinstance(source, Balanced):  # which leaves the examples of a batch as they are
            source = source.source
        self._sampler = make_sampler(source, seed, shuffle, batch_size)
        self._batch_size = batch_size

    def metrics(self, first: int, last: int) -> dict[str, float]:
        """Returns `data_share/TAG` -> share of the examples of steps `first` to `last` with this tag.

        It is empty without tags, or with more than `MAX_TAGS`.
        """
        if not self._sampler.tag_names or len(self._sampler.tag_names) > MAX_TAGS:
            return {}
        count = min(last - first + 1, max(1, MAX_EXAMPLES // self._batch_size))
        batches = np.linspace(first - 1, last - 1, count).astype(np.int64)
        positions = (batches[:, None] * self._batch_size + np.arange(self._batch_size)).reshape(-1)
        counts = self._sampler.tag_counts(self._sampler.addresses(positions))
        shares = (counts / len(positions)).tolist()
        return {PREFIX + name: share for name, share in zip(self._sampler.tag_names, shares, strict=True)}
