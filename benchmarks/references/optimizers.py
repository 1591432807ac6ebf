"""Optimizers with those of torch and of the authors' packages: twenty steps with the same gradients.

The parameters are a tall and a wide matrix, an attention kernel [in, heads, size], a stack of two layers, and a vector,
all with weight decay. The other program has one matrix for each layer. `outside/optimizers.py` says which packages and
settings.

The LAMB and Adafactor of optax treat a stack as one array, and an attention kernel as one of three dimensions
(`OF_OPTAX`); those of the engine do not.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged
from benchmarks.references.rows import Row

STEPS = (1, 2, 5, 20)
"""Steps after which parameters are compared."""
RATE, DECAY = 0.05, 0.1
TOLERANCE = 1e-5
"""Of the change of a parameter since the first step, relative to the largest change of its array. Most of the
difference is that optax computes 1 - 0.999 ** t in float32: after one step, with a relative error of 1.3e-5."""
HALF = 0.04
"""The same of Muon: five rounds of products in bfloat16, whose numbers have a relative error of up to 2**-9. After one
step, torch itself differs by 0.02 from the iteration in float64; coefficients in bfloat16 would make it 0.1."""
BASES = 1e-4
"""The same of SOAP: the eigenvectors of two near eigenvalues enlarge the rounding of the matrix."""
TOLERANCES: Mapping[str, float] = {"muon": HALF, "soap": BASES}
NUMBERS: Mapping[str, optax.contrib.MuonDimensionNumbers | None] = {
    "tall": optax.contrib.MuonDimensionNumbers((0,), (1,)),
    "wide": optax.contrib.MuonDimensionNumbers((0,), (1,)),
    "heads": optax.contrib.MuonDimensionNumbers((0,), (1, 2)),
    "stack": optax.contrib.MuonDimensionNumbers((1,), (2,)),
    "vector": None,
}
"""Parameter -> dimensions of its matrices, as the engine gives them to an optimizer."""
DECAYED: Mapping[str, Any] = {"weight_decay": DECAY}
TARGETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adamw": ("optax.adamw", DECAYED),
    "nadamw": ("optax.nadamw", DECAYED),
    "lion": ("optax.lion", DECAYED),
    "adafactor": ("engine.optimizers.adafactor", {**DECAYED, "smallest": 1}),
    "lamb": ("engine.optimizers.lamb", DECAYED),
    "ademamix": ("optax.contrib.ademamix", DECAYED),
    "schedule_free_sgd": ("engine.optimizers.schedule_free_sgd", DECAYED),
    "schedule_free_adamw": ("engine.optimizers.schedule_free_adamw", DECAYED),
    "muon": ("engine.optimizers.muon", DECAYED),
    "soap": ("engine.optimizers.soap", {**DECAYED, "largest": 10}),
    "mars": ("engine.optimizers.mars", DECAYED),
    # The package has no decay of a bias.
    "adam_mini": (
        "engine.optimizers.adam_mini",
        {**DECAYED, "b2": 0.95, "weight_decay_mask": {name: name != "vector" for name in NUMBERS}},
    ),
}
"""Item -> target of `optimizer.target`, and its arguments."""
OF_OPTAX: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # optax does not multiply this decay by the learning rate.
    "adafactor": ("optax.adafactor", {"weight_decay_rate": RATE * DECAY, "min_dim_size_to_factor": 1}),
    "lamb": ("optax.lamb", DECAYED),
}
"""Optimizers of Optax that compute norms and factors of whole arrays."""
STACKED = {"stack": 1}
"""Parameter -> leading dimensions that index its layers."""
ITEMS = tuple(TARGETS)


def compare(environment: Environment, cases: int) -> Iterator[Row]:
    """Yields the rows of each optimizer; there is one set of gradients, whatever the number of cases."""
    yield from compare_files(environment, {"sets": list(ITEMS)}, compared, len(ITEMS))


def compared(folder: Path, only: str = "") -> Iterator[Row]:
    """Yields rows for the optimizers of a folder in which the outside program has run.

    Args:
        folder: the folder.
        only: an optimizer; by default all.
    """
    items, _ = exchanged(folder)
    params, gradients = given(folder)
    for item in [only] if only else items:
        found = run(item, params, gradients)
        largest = max(errors(folder, item, params, found).values())
        count = sum(x.size for x in found.values())
        yield Row(f"{item}, changes of parameters", count, largest, TOLERANCES.get(item, TOLERANCE))


def given(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns name -> parameter, and name -> gradients [steps, ...], of a folder."""
    with np.load(folder / "given.npz") as stored:
        arrays = {name: np.asarray(x, np.float32) for name, x in stored.items()}
    return {name: arrays[name] for name in NUMBERS}, {name: arrays[f"{name}@gradients"] for name in NUMBERS}


def errors(
    folder: Path, item: str, params: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns the key of each array that the outside program has written -> error of what was found.

    Args:
        folder: the folder in which the program has run.
        item: the optimizer.
        params: name -> parameter at the start.
        found: what `run` returns.
    """
    with np.load(folder / item / "arrays.npz") as stored:
        wanted = dict(stored)
    starts = {**params, **{f"{name}/average": x for name, x in params.items()}}
    return {key: _error(starts[key.partition("@")[0]], found.get(key), x) for key, x in wanted.items()}


def run(
    item: str,
    params: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    targets: Mapping[str, tuple[str, Mapping[str, Any]]] = TARGETS,
) -> dict[str, np.ndarray]:
    """Returns `NAME@STEP` -> parameter, and `NAME/average@STEP` -> average of a schedule-free optimizer.

    Args:
        item: the optimizer.
        params: name -> parameter at the start.
        gradients: name -> gradients [steps, ...].
        targets: item -> target and arguments.
    """
    tx, now = build(*targets[item]), jax.tree.map(jnp.asarray, dict(params))
    state, found = tx.init(now), {}
    step_ = jax.jit(functools.partial(_step, tx))
    for step in range(1, max(STEPS) + 1):
        now, state = step_(now, state, {name: x[step - 1] for name, x in gradients.items()})
        if step in STEPS:
            found |= {f"{name}@{step}": x for name, x in now.items()}
            if isinstance(state, optax.contrib.ScheduleFreeState):
                averages: Any = optax.contrib.schedule_free_eval_params(state, now)
                found |= {f"{name}/average@{step}": x for name, x in averages.items()}
    return {name: np.asarray(x) for name, x in found.items()}


def build(target: str, arguments: Mapping[str, Any]) -> optax.GradientTransformation:
    """Returns an optimizer."""
    module, _, name = target.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    given = {"matrices": numbers, "stacked": lambda params: STACKED}
    taken = inspect.signature(function).parameters.keys() & given.keys()
    return function(RATE, **arguments, **{argument: given[argument] for argument in taken})


def numbers(params: Mapping[str, Any]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    """Returns the dimensions of the matrices of the parameters, for the argument `matrices`."""
    return {name: NUMBERS[name] for name in params}


def _step(tx: optax.GradientTransformation, params: Any, state: Any, gradient: Any) -> Any:
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _error(start: np.ndarray, found: np.ndarray | None, wanted: np.ndarray) -> float:
    if found is None or found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    difference, change = np.abs(found - wanted).max(), np.abs(wanted - start).max()
    return float(difference / change) if change else float(difference)
