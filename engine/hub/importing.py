"""Matches weights of another program with a module, checks them by outputs, and converts them: `convoy import`.

For weights whose names no table knows, it proposes `init.paths`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from engine.base.errors import CheckpointError
from engine.checkpoint.export import write_safetensors
from engine.checkpoint.tree_compat import SHOWN
from engine.checkpoint.warm_start import FOREIGN, listed
from engine.hub.download import locate
from engine.hub.matching import COUNTERS, variables_of
from engine.hub.names import LAYER
from engine.hub.pair import TOLERANCE, Pair
from engine.hub.path_files import write_paths
from engine.hub.proposal import Match, decide, propose
from engine.hub.warm_start import read_arrays
from engine.hub.weights import Weights

COMMAND = "convoy import"


def open_weights(source: str) -> Weights:
    """Returns the weights that SOURCE names: a safetensors file, a folder, or a name on Hugging Face.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """
    found = locate(source.removeprefix(FOREIGN), "SOURCE")
    return Weights(found.path, "SOURCE", found.name)


def import_weights(
    module: nnx.Module,
    weights: Weights,
    paths: Mapping[str, str | None],
    check: Path | None = None,
    out: Path | None = None,
) -> Iterator[str]:
    """Yields sentences about the weights of a module, and writes them with the names of the module.

    Args:
        module: with initial values, which this replaces.
        weights: of another program.
        paths: as `init.paths`.
        check: an npz file for `Pair`.
        out: the safetensors file; arrays that stay random are left out.

    Raises:
        CheckpointError: an array has no match, an output differs, or a file cannot be read or written.
    """
    pair = None if check is None else Pair(check, "--check")
    read, message = read_arrays(module, weights, paths, COMMAND, "--paths")
    yield message
    if pair is not None:
        variables = {name: variable.get_value() for name, variable in variables_of(module).items()}
        yield check_output(pair.measure(module)({**variables, **read}))
    if out is not None:
        yield write(read, out)


def propose_paths(
    module: nnx.Module, prefix: str, weights: Weights, file: Path, check: Path | None = None, out: Path | None = None
) -> Iterator[str]:
    """Writes a file of `init.paths` for weights whose names no table knows; yields sentences about it.

    Args:
        module: with initial values.
        prefix: its path in the model; "" for the whole model.
        weights: of another program.
        file: a new file.
        check: an npz file for `Pair`; its output decides between entries that fit equally well.
        out: as for `import_weights`.

    Raises:
        CheckpointError: the outputs differ, once the file is written; or a file cannot be read or written.
    """
    pair = None if check is None else Pair(check, "--check")
    matches, difference = propose(module, weights.arrays), None
    if pair is not None:
        values = {name: variable.get_value() for name, variable in variables_of(module).items()}

        def value(path: str, entry: str) -> jax.Array:
            return read_arrays(module, weights, {exactly(path): entry}, COMMAND, "--paths", only=path)[0][path]

        values |= {one.path: value(one.path, one.entry) for one in matches if one.entry}
        difference = decide(matches, pair.measure(module), values, value)
    prefix = f"{prefix.strip('/')}/" if prefix else ""
    entries = {exactly(prefix + one.path): (one.entry, one.comment) for one in matches}
    write_paths(file, entries, f"Paths here -> names in {weights.name}.")
    yield _summary(matches, weights, file)
    if difference is not None:
        yield check_output(difference)
    if out is not None:
        paths = {exactly(one.path): one.entry for one in matches}
        yield write(read_arrays(module, weights, paths, COMMAND, "--paths")[0], out)


def exactly(path: str) -> str:
    """Returns the regular expression of `init.paths` for one array."""
    return f"^{re.escape(path)}$"


def _summary(matches: Sequence[Match], weights: Weights, file: Path) -> str:
    ambiguous = [f"{one.path}: {one.entry}, or {', '.join(one.others)}" for one in matches if one.others]
    random = [one.path for one in matches if one.entry is None]
    used = {piece.partition("[")[0] for one in matches if one.entry for piece in [one.entry.partition(":")[0]]}
    layers = [re.compile(re.escape(name).replace(re.escape(LAYER), r"\d+")) for name in used]
    unused = [
        name
        for name in weights.arrays
        if not name.endswith(COUNTERS) and not any(one.fullmatch(name) for one in layers)
    ]
    lines = [f"matched {len(matches) - len(random)} of {len(matches)} arrays with {weights.name}; wrote {file}"]
    lines += [f"ambiguous: {text}" for text in ambiguous[:SHOWN]]
    lines += [f"... and {len(ambiguous) - SHOWN} more that are ambiguous"] if len(ambiguous) > SHOWN else []
    return "\n".join([*lines, f"random: {listed(random)}; unused: {listed(sorted(unused))}"])


def check_output(difference: float) -> str:
    """Returns a sentence; raises CheckpointError if the outputs differ."""
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"--check: the outputs differ by {difference:.2g} of the largest number; allowed is {TOLERANCE:g}. An "
            "array is matched with another one, or the models compute differently: compare inputs and constants."
        )
    return f"--check: the outputs agree; largest difference {difference:.2g} of the largest number"


def write(read: Mapping[str, jax.Array], out: Path) -> str:
    """Writes arrays by path as a safetensors file, and returns a sentence."""
    write_safetensors({name: np.asarray(x, order="C") for name, x in read.items()}, out, {"format": "convoy"})
    return f"wrote {len(read)} arrays to {out}: init.checkpoint={FOREIGN + str(out)!r}"
