"""Compares the programs of an entry point with the engine, on real data and with other sizes of their dimensions."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.bundles.forward import Specs
from engine.bundles.manifest import BundleError
from engine.bundles.program import symbols_of

type Arrays = Mapping[str, Any]
type Call = Callable[[Arrays], Mapping[str, np.ndarray]]


def run_frames(call: Call, frames: Sequence[Arrays], state: Arrays) -> dict[str, np.ndarray]:
    """Returns the outputs of calls in turn; each passes its state on to the next one.

    Args:
        call: `inputs -> outputs`.
        frames: the inputs of each call.
        state: the state before the first call; {} for a model without memory, which has one frame.

    Returns:
        name -> array; of a model with memory `[frames, ...]`.
    """
    found = []
    for frame in frames:
        outputs = dict(call({**frame, **state}))
        state = {name: outputs[name] for name in state}
        found.append(outputs)
    if not state:
        return found[0]
    return {name: np.stack([outputs[name] for outputs in found]) for name in found[0]}


def variants(inputs: Specs, frames: Sequence[Arrays], state: Arrays) -> Iterator[tuple[Sequence[Arrays], Arrays]]:
    """Yields the inputs of the samples, and inputs with half the size of each dimension of any size."""
    yield frames, state
    for symbol in symbols_of(inputs):
        half = [_halved(inputs, frame, symbol) for frame in frames]
        if any(
            x.shape != frame[name].shape for frame, new in zip(frames, half, strict=True) for name, x in new.items()
        ):
            yield half, _halved(inputs, state, symbol)


def _halved(inputs: Specs, arrays: Arrays, symbol: str) -> dict[str, Any]:
    found = {}
    for name, x in arrays.items():
        shape = inputs[name].shape
        ends = [max(1, n // 2) if str(size) == symbol else n for n, size in zip(x.shape, shape, strict=True)]
        found[name] = x[tuple(map(slice, ends))]
    return found


def differences(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Returns the largest difference of each output, relative to max(1, |largest expected value|).

    Numbers that are not finite must be the same in both. An output of integers counts as one if a value differs.
    """
    result = {}
    for name, want in expected.items():
        have = found.get(name)
        if have is None or have.shape != want.shape or have.dtype != want.dtype:
            result[name] = float("inf")
        elif want.dtype.kind in "biu":  # bfloat16 is of the kind "V"
            result[name] = float(np.any(have != want))
        else:
            result[name] = _difference(np.asarray(have, np.float64), np.asarray(want, np.float64))
    return result


def _difference(have: np.ndarray, want: np.ndarray) -> float:
    finite = np.isfinite(want)
    if not np.array_equal(have[~finite], want[~finite], equal_nan=True) or not np.isfinite(have[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.max(np.abs(have[finite] - want[finite])) / max(1.0, np.max(np.abs(want[finite]))))


def checked(where: str, kind: str, parity: Mapping[str, float], tolerance: float) -> str:
    """Returns a sentence about the largest difference. Raises BundleError if it is above the tolerance."""
    worst = max(parity, key=lambda name: math.inf if math.isnan(parity[name]) else parity[name])
    if not parity[worst] <= tolerance:
        raise BundleError(
            f"{where}: output {worst} of the {kind} program differs from the engine by {parity[worst]:.2g} of its "
            f"largest value; allowed is {tolerance:g}. Nothing was written."
        )
    return f"{where}: {kind} agrees with the engine within {parity[worst]:.1e} ({worst})"
