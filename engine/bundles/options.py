"""What a bundle shall hold, as the flags of `convoy export` say."""

import dataclasses
from collections.abc import Mapping, Sequence

from engine.base.errors import ConfigError
from engine.bundles.program import ALL_PLATFORMS, PLATFORMS
from engine.quantization.runs import Settings

STABLEHLO, ONNX = "stablehlo", "onnx"
FORMATS = (STABLEHLO, ONNX)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a bundle holds.

    Attributes:
        formats: kinds of programs, of `FORMATS`.
        rows: rows of each call; None: any number.
        shapes: name of an input -> other dimensions, such as "batch, length".
        platforms: platforms of StableHLO programs.
        holds_weights: StableHLO programs hold the weights, instead of a file next to them.
        evaluation: evaluation whose data gives the samples; None: the first one.
        overrides: changes of the config of the run, such as "evaluations.heldout.data.length=1".
        sign: file with a secret key of minisign, which signs the manifest.
        quantize: how the model is quantized; None: not at all.
        onnx_python: interpreter of the environment with jax2onnx; None: CONVOY_ONNX_PYTHON.

    Raises:
        ConfigError: an option is not valid.
    """

    formats: Sequence[str] = (STABLEHLO,)
    rows: int | None = None
    shapes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    platforms: Sequence[str] = PLATFORMS
    holds_weights: bool = False
    evaluation: str | None = None
    overrides: Sequence[str] = ()
    sign: str | None = None
    quantize: Settings | None = None
    onnx_python: str | None = None

    def __post_init__(self):
        _check("format", self.formats, FORMATS)
        _check("platforms", self.platforms, ALL_PLATFORMS)
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"--batch={self.rows}: allowed is a number from 1, or any.")


def _check(flag: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    if wrong := [value for value in values if value not in allowed] or ([] if values else [""]):
        raise ConfigError(f"--{flag}: found {wrong[0]!r}. Allowed are one or more of {','.join(allowed)}.")
