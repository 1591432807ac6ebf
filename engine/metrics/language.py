"""Metrics of language models, from the summed negative log likelihood in nats."""

from typing import Any, Self

import jax
import numpy as np
from jax.typing import ArrayLike

from engine.metrics.mean import Mean, sum_examples
from engine.metrics.metric import Metric


class Perplexity(Mean):
    """exp of the mean negative log likelihood per token (Jelinek et al. 1977, doi:10.1121/1.2016299)."""

    higher_is_better = False

    def compute(self) -> Any:
        """Returns exp(total / weight)."""
        return np.exp(super().compute())


class BitsPerByte(Metric):
    """Negative log likelihood in bits per byte of text, which does not depend on the tokenizer.

    Definition: Gao et al. 2020, The Pile (arXiv:2101.00027), section 3.1.
    """

    higher_is_better = False

    nats: jax.Array
    bytes: jax.Array

    @classmethod
    def of(cls, losses: ArrayLike, sizes: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the metric.

        Args:
            losses: negative log likelihoods in nats, `[batch, ...]`, such as `[batch, tokens]`.
            sizes: number of bytes of each token, likewise, or of each example, `[batch]`.
            where: mask or weights, `[batch]` up to `[batch, ...]`, as in `Mean.of`. With sizes of examples, `[batch]`.
        """
        return cls(*(sum_examples(cls.__name__, x, where)[0] for x in (losses, sizes)))

    def compute(self) -> Any:
        """Returns the summed losses in bits, over the summed bytes."""
        return np.divide(self.nats, self.bytes) / np.log(2)
