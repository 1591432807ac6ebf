"""Warm start: initializes a new run with weights of another run, matched by path and shape, on the mesh of this run.

If the other run has averaged weights, they are used, as in evaluations and exports. Optimizer, step, randomness
and position in the data are new. In names and errors, *here* is the model of the new run and *there* is the checkpoint.
A *key* is the section and the path of an array in a state: "params/encoder/0/kernel".
"""

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import CheckpointError
from engine.base.types import PyTree
from engine.checkpoint import paths_of_init, timeouts
from engine.checkpoint.arrays import reraise
from engine.checkpoint.bucket_copy import readable
from engine.checkpoint.frozen import Frozen, describe
from engine.checkpoint.frozen import read as read_arrays
from engine.checkpoint.integrity import verify, warn_of_incomplete
from engine.checkpoint.manifest import MANIFEST, manifest_hash, read_lock
from engine.checkpoint.policy import ranking, read_results
from engine.checkpoint.restoring import verified_frozen
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.tree_compat import (
    SHOWN,
    Leaf,
    check_averages,
    leaves_of,
    other_folds,
    with_stored_folds,
    with_wanted_folds,
)
from engine.cluster import group
from engine.config.schema import Init, InitSource
from engine.config.text import from_text
from engine.run.directory import RunDirectory
from engine.run.lineage import CHECKPOINT, Input
from engine.storage.mounts import shown

if TYPE_CHECKING:
    import jax
    from flax import nnx

FOREIGN = "hf:"
"""Begins a checkpoint that another program wrote."""
HUB = "engine.hub.warm_start"
"""Module of an extension package that reads such checkpoints."""
SECTIONS = ("params", "carried")  # sections of a stored state that a warm start reads; "carried" is the model state
AVERAGED = "ema"
STORED_AS = "stored_as"
"""Metadata of a parameter that is stored in another form than it is read, such as in fewer bits: an object with
`spec(stored)`, how it is read, and `encode(array)`, end of a path -> array, for the path of the parameter."""
OPTIONAL = "optional"
"""Metadata of a parameter that keeps its initial value where a checkpoint lacks it: `nnx.Param(x, optional=True)`."""


@dataclass(frozen=True)
class RestoredWeights:
    """The restored arrays by path, a sentence about them for the user, and the checkpoints that they are from."""

    params: Mapping[str, "jax.Array"]
    model_state: Mapping[str, "jax.Array"]
    message: str
    inputs: Sequence[Input] = ()


def is_set(init: Init) -> bool:
    """Whether a run takes initial weights from checkpoints."""
    return bool(init.checkpoint or init.sources)


def read_weights(
    init: Init, abstract_state: Mapping[str, PyTree], stacked: Mapping[str, int], module: "nnx.Module | None" = None
) -> RestoredWeights:
    """Returns the weights of the checkpoints of `init` for the arrays of this model. Every process calls it.

    Args:
        init: the section of the config.
        abstract_state: the state of this run as jax.ShapeDtypeStruct with shardings.
        stacked: as for `CheckpointStore.restore`.
        module: the model of this run with shapes in place of arrays, for weights of other programs and for parameters
            that a checkpoint may lack.

    Raises:
        CheckpointError: a checkpoint does not exist, is damaged or cannot be read, or an array here has no match
            there.
        ConfigError: no path here begins with a prefix of `paths`, or two sources give one array.
    """
    here = [f"{section}/{path}" for section in SECTIONS for path in abstract_state[section]]
    owners, optional = paths_of_init.owners(init, here), _optional(module)
    forms, stored_state = _metadata(module, STORED_AS), abstract_state
    read_as = {p: forms[p].spec(x) if p in forms else x for p, x in abstract_state["params"].items()}
    abstract_state = {**abstract_state, "params": read_as}
    params, model_state, messages, inputs = {}, {}, [], []
    for name, source in (("", init), *init.sources.items()):
        keys = {key for key in here if owners.get(key) == name}
        if source.checkpoint and (keys or not name):
            foreign = source.checkpoint.startswith(FOREIGN)
            keys = keys - optional if foreign else keys
            part = {s: {p: x for p, x in abstract_state[s].items() if f"{s}/{p}" in keys} for s in SECTIONS}
            where = f"init.sources.{name}" if name else "init"
            if foreign:
                found = importlib.import_module(HUB).read_source(source, where, part, module)
            else:
                found = _read_source(source, where, part, stacked, optional)
            params |= found.params
            model_state |= found.model_state
            messages.append(found.message)
            inputs += found.inputs
    if not init.checkpoint:
        messages.append(f"random: {listed([key for key in here if key not in owners])}")
    for path in forms.keys() & params.keys():
        params |= _encoded(path, forms[path], params[path], stored_state["params"])
    return RestoredWeights(params, model_state, "; ".join(messages), inputs)


def _encoded(path: str, form: Any, array: "jax.Array", abstract: Mapping[str, PyTree]) -> dict[str, "jax.Array"]:
    """Returns the arrays in which a parameter is stored, by their paths, on the devices of `abstract`."""
    import jax

    shapes = jax.eval_shape(form.encode, array)
    shardings = {end: abstract[path + end].sharding for end in shapes}
    found = jax.jit(form.encode, out_shardings=shardings)(array)
    return {path + end: x for end, x in found.items()}


def _read_source(
    source: InitSource,
    where: str,
    abstract_state: Mapping[str, PyTree],
    stacked: Mapping[str, int],
    optional: Set[str],
) -> RestoredWeights:
    """Returns the weights of one checkpoint for the arrays of `abstract_state`; `where` is the path of its section."""
    directory, step = group.run_on_primary(
        lambda: find_step(source.checkpoint, f"{where}.checkpoint"), "the choice of init.checkpoint"
    )
    path = readable(f"{directory}/{step}")
    with contextlib.ExitStack() as stack:
        with reraise(lambda text: _unreadable(path, where, text)):
            stack.enter_context(read_lock(path))
        frozen = verified_frozen(path, verify(path), timeouts.VERIFY_S)
        found = _read_matching(path, frozen, source, where, abstract_state, stacked, optional)
        run = directory.removesuffix("/checkpoints")  # `directory` may be an address
        one = Input(kind=CHECKPOINT, role=where, path=run, step=step, id=manifest_hash(path))
        return dataclasses.replace(found, inputs=(one,))


def _read_matching(
    path: Path,
    frozen: Frozen | None,
    source: InitSource,
    where: str,
    abstract_state: Mapping[str, PyTree],
    stacked: Mapping[str, int],
    optional: Set[str],
) -> RestoredWeights:
    with reraise(lambda text: _unreadable(path, where, text)):
        stored = leaves_of(describe(path, frozen))
    check_averages(stored, path)
    keys = match([f"{s}/{p}" for s in SECTIONS for p in abstract_state[s]], stored, source.paths)
    keys = {key: to for key, to in keys.items() if to in stored or key not in optional}
    wanted = {s: {p: x for p, x in abstract_state[s].items() if f"{s}/{p}" in keys} for s in SECTIONS}
    from_there = _stored_leaves(keys, stored, leaves_of(wanted))
    folds = other_folds(from_there, leaves_of(wanted), stacked)
    if lines := differences(from_there | {k: leaves_of(wanted)[k] for k in folds}, leaves_of(wanted), keys):
        raise CheckpointError(
            f"{where}.checkpoint: {path} does not fit this model:\n  "
            + "\n  ".join(lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []))
            + f"\n{len(lines)} of {len(keys)} arrays here. Only there: "
            + listed([f"{key} {stored[key]}" for key in _unused(keys, stored)])
            + f".\nMap them with {where}.paths, prefix here -> prefix there, or None for random initialization: "
            f"--config.{where}.paths.head=None"
        )
    with reraise(lambda text: _unreadable(path, where, text)):
        read = _read(path, frozen, with_stored_folds(wanted, from_there, folds), keys)
    read = with_wanted_folds(read, wanted, folds)
    return RestoredWeights(read["params"], read["carried"], _sentence(path, keys, stored, abstract_state))


def _optional(module: "nnx.Module | None") -> set[str]:
    """Returns the keys of the parameters that a checkpoint may lack."""
    return {f"params/{path}" for path in _metadata(module, OPTIONAL)}


def _metadata(module: "nnx.Module | None", name: str) -> dict[str, Any]:
    """Returns path -> metadata of this name, of the parameters that have it."""
    if module is None:
        return {}
    from flax import nnx

    found = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): value for path, x in found if (value := x.get_metadata().get(name))}


def find_step(checkpoint: str, where: str = "init.checkpoint") -> tuple[str, int]:
    """Returns the folder of checkpoints and the step that `init.checkpoint` names. Needs no JAX.

    Args:
        checkpoint: the folder of a step, or a run directory: its best step if the run selects a best step, otherwise
            its newest step.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = readable(os.path.expanduser(checkpoint)).absolute()
    if path.name.isdecimal() and (path / MANIFEST).is_file():
        return shown(path.parent), int(path.name)
    run = RunDirectory(path)
    steps = CheckpointStore(run.checkpoints).steps()
    if not steps:
        raise CheckpointError(
            f"{where} = {checkpoint!r}: no checkpoint found. Give a run directory such as runs/digits, or one "
            "of its steps such as runs/digits/checkpoints/500."
        )
    warn_of_incomplete(run.checkpoints, steps)
    settings = from_text(run.read_config_text(), str(run.config)).checkpoint if run.exists() else None
    if settings is not None and settings.best is not None:
        results = {step: found for step, found in read_results(run.checkpoints).items() if step in steps}
        if best := ranking(results, settings.best, settings.best_mode):
            return shown(run.checkpoints), best[0]
    return shown(run.checkpoints), steps[-1]


def match(here: list[str], there: Mapping[str, Leaf], paths: Mapping[str, str | None]) -> dict[str, str]:
    """Returns key here -> key there for every array except those that stay random.

    Args:
        here: keys of this model's arrays.
        there: stored leaves by key; a parameter with an average is read from the average.
        paths: as in the config.
    """
    found = {}
    for key in here:
        section, _, name = key.partition("/")
        to = paths_of_init.translate(name, paths)
        if to is not None:
            averaged = f"{AVERAGED}/{to}"
            found[key] = averaged if section == "params" and averaged in there else f"{section}/{to}"
    return found


def _stored_leaves(keys: Mapping[str, str], stored: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Returns stored leaves by key here. Floats of another precision get the dtype here, as they will be converted."""
    import jax.numpy as jnp

    found = {}
    for key, to in keys.items():
        if to in stored:
            leaf, dtypes = stored[to], (stored[to].dtype, wanted[key].dtype)
            floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
            found[key] = Leaf(leaf.shape, wanted[key].dtype) if floats else leaf
    return found


def _read(
    step: Path, frozen: Frozen | None, wanted: Mapping[str, PyTree], keys: Mapping[str, str]
) -> dict[str, PyTree]:
    """Reads only the arrays of `wanted`, in its structure, each directly onto its devices."""
    import jax

    item: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for section, tree in wanted.items():
        for name, leaf in tree.items():
            there, _, path = keys[f"{section}/{name}"].partition("/")
            item.setdefault(there, {}).setdefault(path, leaf)
    read = read_arrays(step, frozen, item, partial=True)

    given: set[str] = set()

    def array(key: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        there, _, path = keys[key].partition("/")
        x = read[there][path]
        if keys[key] in given or x.sharding != leaf.sharding:  # one array there may serve two arrays here
            x = jax.device_put(x, leaf.sharding, may_alias=False)
        given.add(keys[key])
        return x

    return {s: {p: array(f"{s}/{p}", leaf) for p, leaf in tree.items()} for s, tree in wanted.items()}


def differences(from_there: Mapping[str, Leaf], wanted: Mapping[str, Leaf], keys: Mapping[str, str]) -> list[str]:
    """Returns a line for each array here without a match there, with both shapes."""
    lines = []
    for key, to in keys.items():
        if from_there.get(key) != wanted[key]:
            where = "" if to == key else f"{to} "
            lines.append(f"{key}: here {wanted[key]}, there {where}{from_there.get(key, 'none')}")
    return lines


def _unreadable(path: Path, where: str, text: str) -> str:
    return f"{where}.checkpoint: {path}: cannot be read ({text}). Choose another step: {path.parent}/STEP."


def _unused(keys: Mapping[str, str], stored: Mapping[str, Leaf]) -> list[str]:
    """Returns the keys of weights there that no array here uses; an average counts as its parameter."""
    taken = {key.partition("/")[2] for key in keys.values()}
    return sorted(k for k in stored if k.startswith(("params/", "carried/")) and k.partition("/")[2] not in taken)


def listed(names: Sequence[str]) -> str:
    """Returns the first names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}" if names else "none"


def _sentence(
    path: Path, keys: Mapping[str, str], stored: Mapping[str, Leaf], abstract_state: Mapping[str, PyTree]
) -> str:
    random = [f"{s}/{p}" for s in SECTIONS for p in abstract_state[s] if f"{s}/{p}" not in keys]
    averaged = any(key.startswith(f"{AVERAGED}/") for key in keys.values())
    return (
        f"initialized {len(keys)} arrays from {path}{', from its EMA where available' if averaged else ''}; "
        f"random: {listed(random)}; unused: {listed(_unused(keys, stored))}"
    )
