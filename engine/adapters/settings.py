"""`Adapter`, the settings of one adapter."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Self

from engine.base.errors import ConfigError, did_you_mean

_KINDS = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
"""Type of a setting -> classes of its values."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The settings of a low-rank adapter (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        match: regular expression, searched in the path of a parameter such as "stack/layers/attention/query/kernel".
            Parameters with fewer than two dimensions, besides those of layers and experts, have no adapter.
        rank: columns of A and rows of B.
        alpha: the product of the matrices is scaled by alpha / rank.
        dropout: probability with which the input of A is set to 0 in training, for dense layers alone.
        rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732).
        dora: train the norm of each column of the kernel apart (Liu et al. 2024, arXiv:2402.09353).

    Raises:
        ConfigError: a setting has a wrong value.
    """

    match: str
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            found, kind = getattr(self, field.name), getattr(field.type, "__name__", "")
            if not isinstance(found, _KINDS[kind]) or (isinstance(found, bool) and kind != "bool"):
                raise ConfigError(f"adapter: {field.name} = {found!r}. Allowed: {kind}.")
        if not self.match:
            raise ConfigError(
                'adapter: match is empty. Give a regular expression, such as match="(query|value)/kernel".'
            )
        try:
            re.compile(self.match)
        except re.error as error:
            raise ConfigError(f"adapter: match = {self.match!r} is no regular expression: {error}.") from None
        if self.rank < 1:
            raise ConfigError(f"adapter: rank = {self.rank}. Allowed: a whole number from 1.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"adapter: alpha = {self.alpha}. Allowed: above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter: dropout = {self.dropout}. Allowed: 0 and more, below 1.")

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> Self:
        """Returns the adapter of a section of a config, whose path is `where`. Raises ConfigError."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in settings if name not in known]:
            near = did_you_mean(unknown[0], known)
            raise ConfigError(f"{where}.{unknown[0]}: unknown.{near} An adapter takes: {', '.join(known)}.")
        if "match" not in settings:
            raise ConfigError(f'{where}.match: is missing. Give a regular expression, such as "(query|value)/kernel".')
        return cls(**settings)

    @property
    def scale(self) -> float:
        """Factor of the product of the matrices."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
