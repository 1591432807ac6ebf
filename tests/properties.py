"""Settings of property tests, which Hypothesis runs."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Returns the decorator of a property test: so many examples, the same in every run, without limits on time."""
    slow = [HealthCheck.too_slow]  # fails on a busy machine
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=slow)
