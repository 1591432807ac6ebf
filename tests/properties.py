"""Settings of property tests, which Hypothesis runs."""

from hypothesis import settings


def examples(count: int) -> settings:
    """Returns the decorator of a property test: so many examples, the same in every run, without a time limit each."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None)
