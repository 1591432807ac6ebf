"""Every combination of the values of a space."""

import dataclasses
from collections.abc import Mapping

from engine.base.errors import ConfigError
from engine.config.schema import Plain
from engine.sweeps.domains import MAX_POINTS, Domain, Range, When

MAX_COMBINATIONS = 100_000


def is_active(domain: Domain, values: Mapping[str, Plain]) -> bool:
    """Whether a setting is used in a trial, given the values of the settings before it."""
    return not isinstance(domain, When) or (
        domain.setting in values and any(_same(values[domain.setting], value) for value in domain.values)
    )


def combinations(domains: Mapping[str, Domain]) -> list[dict[str, Plain]]:
    """Returns every combination once; a setting with a condition is present only where it is active.

    Args:
        domains: setting -> domain, where a setting comes after the setting of its condition. The last varies fastest.

    Raises:
        ConfigError: a domain cannot be enumerated, or there are too many combinations.
    """
    found: list[dict[str, Plain]] = [{}]
    for name, domain in domains.items():
        inner = domain.domain if isinstance(domain, When) else domain
        options = inner.values()
        if options is None:
            assert isinstance(inner, Range)
            advice = f"Add points=N: {dataclasses.replace(inner, step=None, points=5)}"
            raise ConfigError(f"--space.{name}={domain}: a grid needs at most {MAX_POINTS} values. {advice}.")
        found = [
            extended
            for values in found
            for extended in (
                [{**values, name: option} for option in options] if is_active(domain, values) else [values]
            )
        ]
        if len(found) > MAX_COMBINATIONS:
            raise ConfigError(
                f"The grid has over {MAX_COMBINATIONS} combinations. Leave settings out, or use a sampler such as tpe."
            )
    return found


def _same(first: Plain, second: Plain) -> bool:
    return first == second and isinstance(first, bool) == isinstance(second, bool)
