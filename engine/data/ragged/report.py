"""Reports how much of the batches is padding, and how equal the costs of the data-parallel ranks are.

Both follow from the lengths of the examples and the order of the run, so nothing is read.
"""

import dataclasses

import numpy as np

from engine.data.batches import Batches
from engine.data.source import BaseSource

BATCHES = 256  # that are looked at, at most: the first ones of the run


@dataclasses.dataclass(frozen=True)
class RaggedReport:
    """Padding and costs of the batches of a run."""

    padding: float
    """Share of the batches' elements that are padding."""
    imbalance: float | None
    """Mean of (largest cost of a rank / mean cost of the ranks) - 1; None for a single rank."""
    late_imbalance: float | None
    """Its 95th percentile over the batches."""
    shares: tuple[float, ...]
    """Share of the batches in each shape, as in `source.shape_specs`."""
    ranks: int
    names: tuple[str, ...]
    """Name of each shape; empty for a single shape."""

    @property
    def metrics(self) -> dict[str, float]:
        """Values for the metrics of the run."""
        found = {"data_padding": self.padding, "data_imbalance": self.imbalance}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        text = f"{self.padding:.1%} of the batches is padding"
        if self.names:
            parts = (f"{name} ({share:.0%})" for name, share in zip(self.names, self.shares, strict=True))
            text += f"; lengths: {', '.join(parts)}"
        if self.imbalance is not None:
            text += (
                f"; the most expensive of {self.ranks} ranks costs {self.imbalance:.1%} more than their mean "
                f"({self.late_imbalance:.1%} in one of 20 batches)"
            )
        return text


def report(source: BaseSource, *, batch_size: int, seed: int, shuffle: bool, ranks: int) -> RaggedReport | None:
    """Returns the report of a run; None if the source does not know the sizes of its examples.

    Args:
        source: training examples.
        batch_size: rows of a global batch.
        seed: seed of the run.
        shuffle: whether the run shuffles the examples.
        ranks: number of equal blocks of rows that different devices compute.
    """
    if not source.measured:
        return None
    batches = Batches(source, batch_size, seed, shuffle)
    count = min(-(-len(source) // batch_size), BATCHES)
    sizes = [found for n in range(count) if (found := batches.sizes(n)) is not None]
    if not sizes:
        return None
    imbalances = np.zeros(0)
    if ranks > 1:
        sums = np.array([found.cost.reshape(ranks, -1).sum(axis=1) for found in sizes])  # [batches, ranks]
        imbalances = sums.max(axis=1) / np.maximum(sums.mean(axis=1), np.finfo(float).tiny) - 1
    shapes = len(source.shape_specs())
    used = np.bincount([batches.shape(n) for n in range(count)], minlength=shapes) / count
    return RaggedReport(
        padding=1 - float(sum(found.elements.sum() for found in sizes) / sum(found.space.sum() for found in sizes)),
        imbalance=float(imbalances.mean()) if ranks > 1 else None,
        late_imbalance=float(np.percentile(imbalances, 95)) if ranks > 1 else None,
        shares=tuple(used.tolist()),
        ranks=ranks,
        names=tuple(source.shape_names()) if shapes > 1 else (),
    )
