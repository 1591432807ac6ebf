"""Resamples of a few examples."""

import numpy as np

EXAMPLES = 12


def counts_of(resamples: int, examples: int = EXAMPLES) -> np.ndarray:
    """Returns how often each example is drawn, `[resamples, examples]`; the last resample has the first one only."""
    random = np.random.default_rng(1)
    drawn = [random.integers(0, examples, examples) for _ in range(resamples)]
    counts = np.stack([np.bincount(each, minlength=examples) for each in drawn])
    counts[-1] = examples * (np.arange(examples) == 0)
    return counts
